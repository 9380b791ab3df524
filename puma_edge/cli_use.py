"""The commands that make an index and use it: embed, search, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puma_edge import report, report_index
from puma_edge.cli_options import (
    PARTIAL,
    BundleFolder,
    Json,
    PrecisionOption,
    RuntimeOption,
    Settings,
    Threads,
)
from puma_edge.prompts import Modality
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, Spread
from puma_edge.runtimes.vectors import Form, Storage, Target


def embed(
    context: typer.Context,
    corpus: Annotated[Path, typer.Argument(help="Folder of images and texts, searched whole.")],
    out: Annotated[Path, typer.Option(help="The index to write.")] = Path("index.npy"),
    bundle: BundleFolder = Path("bundle"),
    runtime: RuntimeOption = Runtime.AUTO,
    precision: PrecisionOption = PrecisionChoice.AUTO,
    dim: Annotated[
        int | None, typer.Option(help="Keep this many dimensions; all by default.")
    ] = None,
    dtype: Annotated[Storage, typer.Option(help="How the index stores numbers.")] = Storage.FLOAT32,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Keep the rows of what has not changed since the index at --out."
        ),
    ] = False,
    spread: Annotated[
        Spread, typer.Option("--engine", help="ray: on the machines of a Ray cluster.")
    ] = Spread.LOCAL,
    ray_address: Annotated[
        str | None, typer.Option(help="The cluster, as auto or HOST:6379; else Ray starts here.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="Encoders on the cluster; one a machine by default.")
    ] = None,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Embed a folder into an index; broken files are set aside, and a cut-off run goes on.

    What is written beside index.npy: index.parquet (a line for each row), index.json, and
    index.quarantine.jsonl if files were set aside, with exit code 3.

    Examples:
    - `puma-edge embed corpus/ --out index.npy`
    - `puma-edge embed ~/Pictures --out pictures.npy --update`
    - `puma-edge embed /shared/corpus --engine ray --ray-address auto`
    """
    from puma_edge.bundle import Bundle
    from puma_edge.display import Embedding
    from puma_edge.find import dimension_warning, gate_warning
    from puma_edge.runtimes.corpus import scan
    from puma_edge.runtimes.embedder import Settings as Options
    from puma_edge.runtimes.embedder import Stamp, embed_corpus
    from puma_edge.spread import SpreadConfig, open_spread

    opened = Bundle.open(bundle)
    found = scan(corpus)
    where = SpreadConfig(spread, ray_address, actors, runtime, precision, threads)
    # Let go of when the command ends, however it does.
    engine = context.with_resource(open_spread(opened, where))
    for warning in (*gate_warning(opened), *dimension_warning(opened, dim)):
        report.say(f"warning: {warning}")
    seen = report.counted(found.seen, "item")
    report.say(f"{corpus}: {seen}, {found.size / 1e6:.1f} MB, {engine.name}")
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
    report_index.show_embedding(result, out, json_)
    if result.quarantined:
        broken = report.counted(result.quarantined, "item")
        report.say(f"{broken} could not be embedded: {out.with_suffix('.quarantine.jsonl')}")
        raise typer.Exit(PARTIAL)


def search(
    index: Annotated[Path, typer.Argument(help="An index written by embed.")],
    text: Annotated[
        list[str] | None, typer.Argument(help="Words to look for; each is a query.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture, alone or with the words.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="More queries: a line each, or .jsonl with text, image.")
    ] = None,
    like: Annotated[list[str] | None, typer.Option(help="More like the row with this id.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle; ./bundle by default.")] = None,
    top: Annotated[int | None, typer.Option(help="Hits of each query; 10 by default.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Least score of a hit.")] = None,
    modality: Annotated[
        list[Modality] | None, typer.Option(help="Only what consists of this; may be repeated.")
    ] = None,
    path: Annotated[
        str | None, typer.Option(help="Only what lies there, like 'photos/*.jpg'.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only where metadata say so: column=value.")
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Compare this many dimensions.")] = None,
    form: Annotated[
        Form | None,
        typer.Option(help="Rows gone through; auto: int8 if there, else exact; hnsw: a graph."),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What kind of answer is wanted.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw the hits as a PNG.")] = None,
    runtime: Annotated[Runtime | None, typer.Option(help="Engine.")] = None,
    precision: Annotated[
        PrecisionChoice | None, typer.Option(help="Arithmetic; auto: INT8 if there.")
    ] = None,
    threads: Threads = None,
    config: Settings = None,
    json_: Json = False,
) -> None:
    """Search an index by words, by a picture, by both together, or by one of its rows.

    Examples:
    - `puma-edge search index.npy "a fox" --top 5`
    - `puma-edge search index.npy --image q.jpg --sheet hits.png`
    - `puma-edge search index.npy "a fox" --modality image --where lang=en --threshold 0.3`
    """
    from puma_edge.find import Asked, SearchConfig, find
    from puma_edge.settings_file import read_config

    settings = read_config(
        "search",
        SearchConfig,
        config,
        bundle=bundle,
        top=top,
        threshold=threshold,
        modality=modality or None,
        path=path,
        where=where or None,
        dim=dim,
        form=form,
        instruction=instruction,
        sheet=sheet,
        runtime=runtime,
        precision=precision,
        threads=threads,
    )
    answer = find(index, Asked(tuple(text or ()), image, queries, tuple(like or ())), settings)
    for warning in answer.warnings:
        report.say(f"warning: {warning}")
    report_index.show_hits(answer.queries, answer.hits, json_)
    if settings.sheet is not None:
        from puma_edge.runtimes.sheet import draw_sheet, sheet_row

        pairs = zip(answer.queries, answer.hits, strict=True)
        rows = [sheet_row(*pair, answer.corpus) for pair in pairs]
        draw_sheet(rows, settings.sheet, answer.heading)
        report.say(f"drawn: {settings.sheet}")


def convert(
    index: Annotated[Path, typer.Argument(help="An index written by embed.")],
    to: Annotated[
        Target,
        typer.Option(help="int8, binary, hnsw: files beside it; fp16, fp32: its own numbers."),
    ],
    json_: Json = False,
) -> None:
    """Convert an index for faster search or fewer bytes, and say what recall it costs.

    Examples:
    - `puma-edge convert index.npy --to int8`
    - `puma-edge convert index.npy --to fp16`
    """
    from puma_edge.progress import Progress
    from puma_edge.runtimes.convert import convert as run

    progress: Progress | None = None

    def tell(done: int, total: int) -> None:
        nonlocal progress
        progress = progress or Progress(f"building a graph of {index}", total)
        progress.update(done)
        if done == total:
            progress.close()

    report_index.show_conversion(run(index, to, tell), json_)
