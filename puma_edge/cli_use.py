"""The commands that use a bundle: embed, search, check, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from puma_edge import report
from puma_edge.cli_options import (
    PARTIAL,
    BundleFolder,
    Json,
    PrecisionOption,
    RuntimeOption,
    Threads,
)
from puma_edge.runtimes.engine import PrecisionChoice, Runtime
from puma_edge.runtimes.vectors import Storage


def embed(
    corpus: Annotated[Path, typer.Argument(help="Folder of images and texts, searched whole.")],
    out: Annotated[Path, typer.Option(help="The index to write.")] = Path("index.npy"),
    bundle: BundleFolder = Path("bundle"),
    runtime: RuntimeOption = Runtime.AUTO,
    precision: PrecisionOption = PrecisionChoice.AUTO,
    dim: Annotated[int | None, typer.Option(help="Keep this many dimensions.")] = None,
    dtype: Annotated[Storage, typer.Option(help="How the index stores numbers.")] = Storage.FLOAT32,
    update: Annotated[
        bool, typer.Option("--update", help="Keep the rows of what has not changed.")
    ] = False,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Embed a folder into an index; broken files are set aside, and a cut-off run goes on.

    Examples: `puma-edge embed corpus/ --out index.npy`,
    `puma-edge embed ~/Pictures --out pictures.npy --update`
    """
    from puma_edge.bundle import Bundle
    from puma_edge.display import Embedding
    from puma_edge.runtimes.corpus import scan
    from puma_edge.runtimes.embedder import Settings as Options
    from puma_edge.runtimes.embedder import Stamp, embed_corpus
    from puma_edge.runtimes.engine import open_engine

    opened = Bundle.open(bundle)
    found = scan(corpus)
    engine = open_engine(opened, runtime, precision, threads)
    _warn_gate(opened)
    if dim and dim not in (opened.manifest.dimension, *opened.manifest.matryoshka):
        trained = ", ".join(map(str, opened.manifest.matryoshka)) or "none"
        report.say(f"warning: the model was not trained for {dim} dimensions (trained: {trained})")
    report.say(f"{corpus}: {found.seen} items, {found.size / 1e6:.1f} MB, {engine.name}")
    if found.unsupported:
        report.say(f"not supported, passed over: {found.describe_unsupported()}")
    with Embedding(f"embedding {corpus}") as shown:
        result = embed_corpus(
            found,
            out,
            opened.spec,
            engine.encoder,
            Stamp(opened.manifest.model_id, engine.precision.value),
            Options(dimension=dim, storage=dtype, update=update),
            shown.watch,
        )
    report.show_embedding(result, out, json_)
    if result.quarantined:
        report.say(f"{result.quarantined} items could not be embedded: {out.stem}.quarantine.jsonl")
        raise typer.Exit(PARTIAL)


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
    from puma_edge.bench import BenchConfig
    from puma_edge.bench import bench as run
    from puma_edge.errors import MissingExtraError
    from puma_edge.plots import draw_bench
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


def _warn_gate(bundle: Any) -> None:
    if bundle.manifest.gate != "passed":
        report.say(f"warning: {bundle.folder} failed its parity check and was exported anyway")
