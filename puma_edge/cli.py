"""The command line: parse, one frozen config, one library call, print."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from puma_edge import report
from puma_edge.config import (
    SAMPLE,
    ExportConfig,
    Gate,
    TrainConfig,
    read_config,
)
from puma_edge.errors import PumaError, UsageError, require
from puma_edge.runtimes.engine import PrecisionChoice, Runtime
from puma_edge.runtimes.vectors import Storage

PARTIAL = 3  # exit code: done in part

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, shrink and run a layer-pruned multimodal embedder at the edge.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BundleFolder = Annotated[Path, typer.Option(help="The exported bundle.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all by default.")]
Settings = Annotated[
    Path | None, typer.Option("--config", help="Settings; ./puma-edge.toml if it is there.")
]
Keep = Annotated[int | None, typer.Option("--keep-layers", help="Decoder layers that stay.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all that is drawn.")]
RuntimeOption = Annotated[Runtime, typer.Option(help="Engine.")]
PrecisionOption = Annotated[PrecisionChoice, typer.Option(help="Arithmetic; auto: INT8 if there.")]


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder to write, which must not exist.")],
    json_: Json = False,
) -> None:
    """Write a folder of pictures and texts to play with.

    Example: `puma-edge sample corpus/`
    """
    from puma_edge.bundle import replace_folder
    from puma_edge.sample import write_corpus

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty; give a new folder")
    with replace_folder(folder) as work:
        counts = write_corpus(work)
    report.show({"folder": str(folder), **counts}, json_)


@app.command()
def train(
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a Qwen2-VL.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder in M-BEIR's format.")] = None,
    out: Annotated[str | None, typer.Option(help="Run folder; runs/<date> by default.")] = None,
    keep_layers: Keep = None,
    with_last: Annotated[
        bool | None, typer.Option("--with-last/--first", help="First k-1 layers and the last.")
    ] = None,
    seed: Seed = None,
    threads: Threads = None,
    config: Settings = None,
    json_: Json = False,
) -> None:
    """Cut a model to k layers, distil, then train with MAC-Loss; LoRA throughout.

    Without flags: the sample base from 8 to 4 layers on the sample data, in minutes on a CPU.

    Example: `puma-edge train --model Qwen/Qwen2-VL-2B-Instruct --data mbeir/ --keep-layers 12`
    """
    require("peft", "train")
    from puma_edge.sample import recipe_file
    from puma_edge.train import train as run

    is_sample = model in (None, SAMPLE) and data in (None, SAMPLE)
    if config is None and is_sample and not Path("puma-edge.toml").is_file():
        config = recipe_file()
    settings = read_config(
        "train",
        TrainConfig,
        config,
        model=model,
        data=data,
        out=out,
        keep_layers=keep_layers,
        with_last=with_last,
        seed=seed,
        threads=threads,
    )
    report.show_training(run(settings), json_)


@app.command()
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
    from puma_edge.train import newest_run

    report.show({"merged": str(merge_run(run or newest_run(), out))}, json_)


@app.command()
def export(
    model: Annotated[
        str | None,
        typer.Argument(help="Merged model, run or shape:qwen2-vl-2b; newest run by default."),
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", help="The same, named.")] = None,
    out: Annotated[str | None, typer.Option(help="The bundle's folder.")] = None,
    data: Annotated[str | None, typer.Option(help="Held-out queries, M-BEIR's format.")] = None,
    keep_layers: Keep = None,
    fp16: Annotated[bool | None, typer.Option("--fp16", help="FP16 graphs too.")] = None,
    int8: Annotated[bool | None, typer.Option("--int8", help="INT8 graphs too.")] = None,
    trt: Annotated[bool | None, typer.Option("--trt", help="TensorRT engines too.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Folder of images and texts for INT8 ranges.")
    ] = None,
    calibration_items: Annotated[
        int | None, typer.Option(min=8, help="Items read for the INT8 ranges; 256 by default.")
    ] = None,
    gate: Annotated[Gate | None, typer.Option(help="What a failed parity check does.")] = None,
    seed: Seed = None,
    config: Settings = None,
    json_: Json = False,
) -> None:
    """Write a bundle of ONNX graphs, proved against PyTorch before it replaces an old one.

    Examples: `puma-edge export --int8`,
    `puma-edge export merged/ --int8 --calibration photos/ --out bundle/`
    """
    require("onnxscript", "export")
    require("onnxruntime", "cpu")
    from puma_edge.export.command import run_export

    if model and model_option:
        raise UsageError(f"two models given, {model} and --model {model_option}; give one")
    settings = read_config(
        "export",
        ExportConfig,
        config,
        model=model or model_option,
        out=out,
        data=data,
        keep_layers=keep_layers,
        fp16=fp16,
        int8=int8,
        trt=trt,
        calibration=calibration,
        calibration_items=calibration_items,
        gate=gate,
        seed=seed,
    )
    result = run_export(settings, lambda text: print(f"export: {text}", file=sys.stderr))
    report.show_export(result, json_)
    if settings.trt:
        _explain_tensorrt()


def _explain_tensorrt() -> None:
    """This version builds no engines: say what is there, and leave with the code for a part."""
    print(
        "puma-edge: --trt given, but no TensorRT engine was built: this version exports ONNX "
        "graphs only; they build with trtexec --onnx=bundle/text.fp32.onnx on a device with "
        "TensorRT 10.3 or newer. The ONNX bundle is complete.",
        file=sys.stderr,
    )
    raise typer.Exit(PARTIAL)


@app.command()
def embed(
    corpus: Annotated[Path, typer.Argument(help="Folder of images and texts, searched whole.")],
    out: Annotated[Path, typer.Option(help="The index to write.")] = Path("index.npy"),
    bundle: BundleFolder = Path("bundle"),
    runtime: RuntimeOption = Runtime.AUTO,
    precision: PrecisionOption = PrecisionChoice.AUTO,
    dim: Annotated[int | None, typer.Option(help="Keep this many dimensions.")] = None,
    dtype: Annotated[Storage, typer.Option(help="How the index stores numbers.")] = Storage.FLOAT32,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Embed a folder into an index; broken files are set aside, and a cut-off run goes on.

    Examples: `puma-edge embed corpus/ --out index.npy`,
    `puma-edge embed ~/Pictures --out pictures.npy --precision int8`
    """
    from puma_edge.bundle import Bundle
    from puma_edge.progress import Progress
    from puma_edge.runtimes.corpus import scan
    from puma_edge.runtimes.embedder import Settings as Options
    from puma_edge.runtimes.embedder import Stamp, embed_corpus
    from puma_edge.runtimes.engine import open_engine

    opened = Bundle.open(bundle)
    found = scan(corpus)
    engine = open_engine(opened, runtime, precision, threads)
    _warn_gate(opened)
    report.say(f"{corpus}: {found.seen} items, {found.size / 1e6:.1f} MB, {engine.name}")
    if found.unsupported:
        report.say(f"not supported, passed over: {found.describe_unsupported()}")
    with Progress(f"embedding {corpus}", len(found.documents)) as progress:
        result = embed_corpus(
            found,
            out,
            opened.spec,
            engine.encoder,
            Stamp(opened.manifest.model_id, engine.precision.value),
            Options(dimension=dim, storage=dtype),
            lambda state: progress.update(state.done, f"of {state.total} different"),
        )
    report.show_embedding(result, out, json_)
    if result.quarantined:
        report.say(f"{result.quarantined} items could not be embedded: {out.stem}.quarantine.jsonl")
        raise typer.Exit(PARTIAL)


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="An index written by embed.")],
    text: Annotated[list[str] | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to look for, or beside.")] = None,
    bundle: BundleFolder = Path("bundle"),
    top: Annotated[int, typer.Option(help="Hits of each query.")] = 10,
    instruction: Annotated[str | None, typer.Option(help="What kind of answer is wanted.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw the hits as a PNG.")] = None,
    runtime: RuntimeOption = Runtime.AUTO,
    precision: PrecisionOption = PrecisionChoice.AUTO,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Search an index by words, by a picture, or by both together.

    Examples: `puma-edge search index.npy "a fox" --top 5`,
    `puma-edge search index.npy --image q.jpg --sheet hits.png`
    """
    from puma_edge.bundle import Bundle
    from puma_edge.runtimes.engine import open_engine
    from puma_edge.runtimes.index import Index
    from puma_edge.runtimes.searcher import Query, embed_queries
    from puma_edge.runtimes.searcher import search as find
    from puma_edge.runtimes.sheet import draw_sheet, sheet_row

    opened = Bundle.open(bundle)
    entries = Index.open(index)
    engine = open_engine(opened, runtime, precision, threads)
    _warn_gate(opened)
    if warning := entries.require_model(opened.manifest, engine.precision):
        report.say(f"warning: {warning}")
    words: list[str | None] = [*text] if text else [None]
    queries = [Query(one, image, instruction) for one in words]
    vectors = embed_queries(queries, opened.spec, engine.encoder, opened.manifest.instructions)
    hits = find(entries, vectors[:, : entries.header.dimension], top)
    report.show_hits(queries, hits, json_)
    if sheet is not None:
        corpus = Path(entries.header.corpus)
        rows = [sheet_row(*pair, corpus) for pair in zip(queries, hits, strict=True)]
        title = f"{len(entries)} items in {corpus}\nmodel {opened.manifest.model_id}, {engine.name}"
        draw_sheet(rows, sheet, title)
        report.say(f"drawn: {sheet}")


@app.command()
def bench(
    bundle: BundleFolder = Path("bundle"),
    model: Annotated[str | None, typer.Option(help="PyTorch baseline; the export's own.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each backend.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time of a case in a turn.")] = 1.0,
    batches: Annotated[bool, typer.Option(help="Time batches too.")] = True,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Rows as JSON; a plot is drawn beside.")] = Path(
        "bench.json"
    ),
    json_: Json = False,
) -> None:
    """Time the bundle against PyTorch fp32 and bf16: one process each, turns interleaved.

    Example: `puma-edge bench --rounds 5`
    """
    from puma_edge.bench import BenchConfig, draw_bench
    from puma_edge.bench import bench as run
    from puma_edge.errors import MissingExtraError
    from puma_edge.progress import Progress

    settings = BenchConfig(str(bundle), model or "", threads or 0, rounds, seconds, batches)
    progress: Progress | None = None

    def turn_done(done: int, total: int) -> None:
        nonlocal progress
        progress = progress or Progress("benchmark", total)
        progress.update(done)

    result = run(settings, turn_done)
    if progress is not None:
        progress.close()
    out.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    report.show_bench(result, json_)
    try:
        draw_bench(result, out.with_suffix(".png"))
    except MissingExtraError as error:
        report.say(f"no plot was drawn: {error}")


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(help="A bundle, or a model folder.")] = "bundle",
    data: Annotated[str, typer.Option(help="Folder in M-BEIR's format.")] = SAMPLE,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    precision: PrecisionOption = PrecisionChoice.AUTO,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Recall@5 of a bundle or a model, task by task.

    Example: `puma-edge eval bundle --precision int8 --data mbeir/`
    """
    from puma_edge.commands import run_eval

    report.show_recall({target: run_eval(target, data, split, precision, threads)}, json_)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")] = Path("bundle"),
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Check every precision of a bundle on this device against the embeddings it carries.

    Example: `puma-edge check bundle/`
    """
    from puma_edge.commands import run_check

    rows = run_check(bundle, threads)
    report.show_check(rows, json_)
    if not all(row["passed"] for row in rows):
        raise typer.Exit(1)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A bundle, an index or a run.")],
    json_: Json = False,
) -> None:
    """Say what a bundle, an index or a run is.

    Example: `puma-edge info index.npy`
    """
    from puma_edge.commands import describe

    report.show(describe(path), json_)


@app.command()
def doctor(json_: Json = False) -> None:
    """Say which engines and packages are here, and what to install for the others.

    Example: `puma-edge doctor`
    """
    from puma_edge.commands import examine

    report.show(examine(), json_)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in, which must be new.")] = Path("demo"),
) -> None:
    """Run the whole path on the sample: train, export, embed, search, bench.

    Example: `puma-edge demo --out demo/`
    """
    from puma_edge.demo import run_demo

    run_demo(out)


def _warn_gate(bundle: Any) -> None:
    if bundle.manifest.gate != "passed":
        report.say(f"warning: {bundle.folder} failed its parity check and was exported anyway")


def main() -> None:
    """Run the command line; every foreseeable failure is one line and an exit code."""
    try:
        app()
    except PumaError as error:
        print(f"puma-edge: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("puma-edge: stopped; the same command goes on or starts again", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        print(f"puma-edge: {error.strerror}: {error.filename or 'disk'}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        _quiet_broken_pipe()


def _quiet_broken_pipe() -> None:
    """`puma-edge search ... | head -1` closes stdout early; that is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
