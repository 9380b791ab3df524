"""The commands that make a bundle: train, merge, export."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from puma_edge import report, report_quality
from puma_edge.cli_options import PARTIAL, Json, Keep, Layers, Seed, Settings, Threads, WithLast
from puma_edge.config import SAMPLE, ExportConfig, Gate, Ranges, TrainConfig
from puma_edge.errors import MissingExtraError, UsageError, require
from puma_edge.layer_choice import parse_layers
from puma_edge.ranks import rank
from puma_edge.settings_file import read_config, read_table

PASSED = "passed"


def train(
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a Qwen-VL; the sample base by default.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder in M-BEIR's format; the sample by default.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Run folder; by default one in runs/, named by the time.")
    ] = None,
    keep_layers: Keep = None,
    with_last: WithLast = None,
    layers: Layers = None,
    seed: Seed = None,
    threads: Threads = None,
    config: Settings = None,
    json_: Json = False,
) -> None:
    """Cut a model to k layers, distil, then train with MAC-Loss; LoRA throughout.

    Without flags: the sample base from 8 to 4 layers on the sample data, in minutes on a CPU. The
    run's folder gets the merged model, recall before and after, and loss.png; a run that was killed
    goes on when the same line is given again.

    Examples:
    - `puma-edge train`
    - `puma-edge train --model Qwen/Qwen2-VL-2B-Instruct --data mbeir/ --keep-layers 12`
    """
    require("peft", "train")
    from puma_edge.plots import draw_losses
    from puma_edge.sample import recipe_file
    from puma_edge.train import train as run

    named = read_table("train", config)
    sources = (model or named.get("model", SAMPLE), data or named.get("data", SAMPLE))
    # On the sample the recipe's settings hold where nothing else is said: it takes minutes.
    of_sample = config is None and sources == (SAMPLE, SAMPLE)
    settings = read_config(
        "train",
        TrainConfig,
        config,
        read_config("train", TrainConfig, recipe_file()) if of_sample else None,
        model=model,
        data=data,
        out=out,
        keep_layers=keep_layers,
        with_last=with_last,
        layers=parse_layers(layers),
        seed=seed,
        threads=threads,
    )
    result = run(settings)
    if rank() > 0:  # the first rank tells for all
        return
    report_quality.show_training(result, json_)
    try:
        draw_losses(result.run, result.run / "loss.png")
    except MissingExtraError as error:
        report.say(f"no loss curve was drawn: {error}")


def merge(
    run: Annotated[Path | None, typer.Argument(help="A finished run; newest by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the merged model.")] = Path("merged"),
    json_: Json = False,
) -> None:
    """Copy a run's model, its LoRA adapters folded in, to a folder that transformers opens.

    Example: `puma-edge merge runs/2026-01-31_120000 --out merged/`
    """
    require("peft", "train")
    from puma_edge.merge import merge_run
    from puma_edge.run_folder import newest_run

    report.show({"merged": str(merge_run(run or newest_run(), out))}, json_)


def export(
    model: Annotated[
        str | None,
        typer.Argument(help="Merged model, run or shape:qwen2-vl-2b; newest run by default."),
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", help="The same, named.")] = None,
    out: Annotated[
        str | None, typer.Option(help="The bundle's folder; ./bundle by default.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Held-out queries, in M-BEIR's format; the run's own.")
    ] = None,
    keep_layers: Keep = None,
    with_last: WithLast = None,
    layers: Layers = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Largest area of an image, in pixels.")
    ] = None,
    fp16: Annotated[bool | None, typer.Option("--fp16", help="FP16 graphs too.")] = None,
    int8: Annotated[bool | None, typer.Option("--int8", help="INT8 graphs too.")] = None,
    int8_trt: Annotated[
        bool | None, typer.Option("--int8-trt", help="INT8 graphs for TensorRT too.")
    ] = None,
    trt: Annotated[bool | None, typer.Option("--trt", help="TensorRT engines too.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Folder of images and texts for INT8; validation queries.")
    ] = None,
    calibration_items: Annotated[
        int | None, typer.Option(min=8, help="Items read for the INT8 ranges; 256 by default.")
    ] = None,
    ranges: Annotated[
        Ranges | None, typer.Option(help="How the INT8 ranges are chosen; minmax by default.")
    ] = None,
    gate: Annotated[
        Gate | None, typer.Option(help="A failed parity check stops (fail) or is recorded.")
    ] = None,
    seed: Seed = None,
    config: Settings = None,
    json_: Json = False,
) -> None:
    """Write a bundle of ONNX graphs, proved against PyTorch before it replaces an old one.

    Examples:
    - `puma-edge export --int8`
    - `puma-edge export merged/ --int8 --calibration photos/ --out bundle/`
    - `puma-edge export bundle/ --trt` (engines of a bundle, on the device that serves; no torch)
    """
    if model and model_option:
        raise UsageError(f"two models given, {model} and --model {model_option}; give one")
    given = {
        "out": out,
        "data": data,
        "keep_layers": keep_layers,
        "max_pixels": max_pixels,
        "with_last": with_last,
        "layers": parse_layers(layers),
        "fp16": fp16,
        "int8": int8,
        "int8_trt": int8_trt,
        "calibration": calibration,
        "calibration_items": calibration_items,
        "ranges": ranges,
        "gate": gate,
        "seed": seed,
    }
    named = model or model_option
    settings = read_config("export", ExportConfig, config, model=named, trt=trt, **given)
    if settings.trt and settings.model and (Path(settings.model) / "manifest.json").is_file():
        if unused := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"--{unused[0].replace('_', '-')} changes nothing in {settings.model}, a bundle "
                "that is exported already; --trt builds its engines as it is"
            )
        built = _build_engines(Path(settings.model))
        report.show(built, json_)
        _leave_if_failed(built)
        return
    require("onnxscript", "export")
    require("onnxruntime", "cpu")
    from puma_edge.export.command import run_export
    from puma_edge.export.pipeline import ParityError

    try:
        result = run_export(settings, lambda text: print(f"export: {text}", file=sys.stderr))
    except ParityError as error:
        report_quality.show_export(error.report, json_)
        raise
    report_quality.show_export(result, json_)
    if not json_:
        print(f"bundle: {result.bundle}, model {result.manifest.model_id}")
    if settings.trt:
        _add_engines(Path(settings.out))


def _add_engines(bundle: Path) -> None:
    """Build a new bundle's TensorRT engines; where that cannot be, say so and leave with code 3."""
    from puma_edge.runtimes.cuda import NoDeviceError

    try:
        built = _build_engines(bundle)
    except (MissingExtraError, NoDeviceError) as error:
        report.say(
            f"puma-edge: --trt given, but no TensorRT engine was built: {error}; the ONNX bundle "
            "is complete, and engines are built on the device where they will serve"
        )
        raise typer.Exit(PARTIAL) from None
    for engine, result in built.items():
        report.say(f"{engine}: {result}")
    _leave_if_failed(built)


def _build_engines(bundle: Path) -> dict[str, str]:
    """Build a bundle's TensorRT engines and run the parity gate on them: engine -> how it did."""
    from puma_edge.checks import run_check
    from puma_edge.export.engines import build_engines
    from puma_edge.runtimes.plans import PlanName

    plans = {plan: PlanName.parse(plan) for plan in build_engines(bundle)}
    rows = {row["precision"]: row["failures"] for row in run_check(bundle, None, only="trt")}
    return {
        str(plan): "; ".join(rows[name.precision]) or PASSED
        for plan, name in plans.items()
        if name is not None
    }


def _leave_if_failed(built: Mapping[str, str]) -> None:
    if any(result != PASSED for result in built.values()):
        raise typer.Exit(1)
