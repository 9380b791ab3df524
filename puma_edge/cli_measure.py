"""The commands that measure a bundle: recall, agreement with PyTorch, and speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puma_edge import report, report_quality, report_speed
from puma_edge.cli_options import BundleFolder, Json, Threads
from puma_edge.config import SAMPLE
from puma_edge.metrics import Pool


def evaluate(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Bundles or model folders; ./bundle by default.")
    ] = None,
    data: Annotated[str, typer.Option(help="Folder in M-BEIR's format.")] = SAMPLE,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    k: Annotated[int | None, typer.Option(help="Hits looked at; M-BEIR's 5 or 10.")] = None,
    pool: Annotated[Pool, typer.Option(help="Among which candidates.")] = Pool.LOCAL,
    plot: Annotated[Path | None, typer.Option(help="Draw the recall of all as a PNG.")] = None,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Recall and nDCG, task by task, with 95% intervals; several targets side by side.

    A bundle may name a precision after an @. Differences are to the first target, query by query.

    Examples:
    - `puma-edge eval bundle`
    - `puma-edge eval bundle@fp32 bundle@int8 --data mbeir/ --plot recall.png`
    """
    from puma_edge.evaluation import EvalConfig, run_eval
    from puma_edge.plots import draw_recall

    config = EvalConfig(data, split, k, pool, threads)
    rows = {target: run_eval(target, config) for target in targets or ["bundle"]}
    report_quality.show_scores(rows, json_)
    if plot is not None:
        from puma_edge.evaluate import by_task

        draw_recall({target: by_task(scores) for target, scores in rows.items()}, plot)
        report.say(f"drawn: {plot}")


def check(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")] = Path("bundle"),
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Check every precision of a bundle on this device against the embeddings it carries.

    Exit code 1 if one of them fails.

    Example: `puma-edge check bundle/`
    """
    from puma_edge.checks import run_check

    rows = run_check(bundle, threads)
    report_quality.show_check(rows, json_)
    if not all(row["passed"] for row in rows):
        raise typer.Exit(1)


def bench(
    bundle: BundleFolder = Path("bundle"),
    model: Annotated[str | None, typer.Option(help="PyTorch baseline; what was exported.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each backend.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time of a case in a turn.")] = 1.0,
    batches: Annotated[bool, typer.Option(help="Time batches too.")] = True,
    only: Annotated[
        list[str] | None,
        typer.Option(help='Time this case, as "1 image"; may be repeated.'),
    ] = None,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Rows as JSON; a plot is drawn beside.")] = Path(
        "bench.json"
    ),
    json_: Json = False,
) -> None:
    """Time the bundle against PyTorch fp32 and bf16: one process each, turns interleaved.

    Without PyTorch, the bundle's precisions are timed against each other.

    Example: `puma-edge bench --rounds 5`
    """
    from puma_edge.bench import BenchConfig
    from puma_edge.bench import bench as run
    from puma_edge.errors import MissingExtraError
    from puma_edge.plots import draw_bench
    from puma_edge.progress import Progress

    settings = BenchConfig(
        str(bundle), model or "", threads or 0, rounds, seconds, batches, tuple(only or ())
    )
    progress: Progress | None = None

    def turn_done(done: int, total: int) -> None:
        nonlocal progress
        progress = progress or Progress("benchmark", total)
        progress.update(done)

    result = run(settings, turn_done)
    if progress is not None:
        progress.close()
    out.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    report_speed.show_bench(result, json_)
    try:
        draw_bench(result, out.with_suffix(".png"))
    except MissingExtraError as error:
        report.say(f"no plot was drawn: {error}")
