"""The command that looks for the best trade on this device."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from puma_edge import report, report_speed
from puma_edge.bundle import Precision
from puma_edge.cli_options import Json, Threads
from puma_edge.config import SAMPLE
from puma_edge.errors import MissingExtraError, PumaError, UsageError, require


def sweep(
    models: Annotated[
        list[str] | None, typer.Argument(help="Merged models or runs; newest run by default.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of bundles, measurements and sweep.png.")
    ] = Path("sweep"),
    data: Annotated[str, typer.Option(help="Folder in M-BEIR's format.")] = SAMPLE,
    split: Annotated[str, typer.Option(help="Queries recall is taken on.")] = "val",
    layers: Annotated[
        list[int] | None, typer.Option(help="Cut further to so many layers; repeat for more.")
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="fp32 and int8 by default; repeat for more.")
    ] = None,
    pixels: Annotated[
        list[int] | None, typer.Option(min=1, help="Largest area of an image; repeat for more.")
    ] = None,
    dim: Annotated[
        list[int] | None, typer.Option(help="Length of an embedding; repeat for more.")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Pick the most recall within this, such as 30ms.")
    ] = None,
    min_recall: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Pick the fastest with this share of the best recall."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time of a query kind in a turn.")] = 0.5,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Measure layers, precisions, pixels and dimensions against each other on this device.

    A sweep that was stopped goes on where it was. Exit code 1 if nothing keeps the limits.

    Examples:
    - `puma-edge sweep --dim 64 --dim 128 --min-recall 0.98`
    - `puma-edge sweep run-4/ run-6/ --precision int8 --max-latency 30ms`
    """
    require("onnxscript", "export")
    require("onnxruntime", "cpu")
    from puma_edge.plots import draw_sweep
    from puma_edge.sweep import SweepConfig
    from puma_edge.sweep import sweep as run
    from puma_edge.trade import pick

    limit = None if max_latency is None else milliseconds(max_latency)
    config = SweepConfig(
        models=tuple(models or [""]),
        out=str(out),
        data=data,
        split=split,
        layers=tuple(layers or ()),
        precisions=tuple(precision or (Precision.FP32, Precision.INT8)),
        pixels=tuple(pixels or ()),
        dimensions=tuple(dim or ()),
        threads=threads or 0,
        rounds=rounds,
        seconds=seconds,
    )
    result = run(config, lambda text: print(f"sweep: {text}", file=sys.stderr))
    limited = limit is not None or min_recall is not None
    picked = pick(result.points, limit, min_recall) if limited else None
    report_speed.show_sweep(result, picked, json_)
    try:
        draw_sweep(result, picked, out / "sweep.png")
        report.say(f"drawn: {out / 'sweep.png'}")
    except MissingExtraError as error:
        report.say(f"no plot was drawn: {error}")
    if limited and picked is None:
        fastest = min(one.latency_ms for one in result.points)
        raise PumaError(
            f"nothing keeps the limits; the fastest here takes {fastest:.2f} ms: allow more "
            "latency or less recall, or sweep fewer layers, pixels or bits"
        )


def milliseconds(text: str) -> float:
    """`30ms`, `0.03s` or `30` as milliseconds.

    Raises:
        UsageError: it is none of them.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)?", text.strip())
    if not found:
        raise UsageError(f"--max-latency {text!r}: expected a time such as 30ms or 0.5s")
    return float(found[1]) * (1000 if found[2] == "s" else 1)
