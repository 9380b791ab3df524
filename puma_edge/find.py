"""The work behind `search`: what is asked, in which index, among which rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from puma_edge.bundle import Bundle
from puma_edge.errors import PumaError, UsageError
from puma_edge.inputs import Float32
from puma_edge.prompts import Modality
from puma_edge.runtimes.engine import Engine, PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.filters import Filters, parse_where
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.parts import locate, printable
from puma_edge.runtimes.query_file import read_queries
from puma_edge.runtimes.searcher import Hit, Query, Wanted, embed_queries, search
from puma_edge.runtimes.vectors import Form, shorten


@dataclass(frozen=True)
class Asked:
    """What is looked for.

    Attributes:
        texts: words, a query each.
        image: a picture, alone or beside each of the words.
        queries: a file with more queries.
        like: ids of rows whose like is looked for; the row itself is no hit.
    """

    texts: tuple[str, ...] = ()
    image: Path | None = None
    queries: Path | None = None
    like: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchConfig:
    """`puma-edge search`.

    Attributes:
        bundle: the exported bundle; not opened where only rows' like is looked for.
        top: hits of each query.
        threshold: the least score of a hit, None for any.
        modality: only what consists of one of these; empty for any.
        path: only what lies there, such as `photos/*.jpg`; None for anywhere.
        where: only where metadata say so, as `column=value`.
        dim: compare the first so many dimensions, None for all.
        form: in what form the rows are gone through.
        instruction: what kind of answer is wanted; None for the bundle's own.
        sheet: the PNG in which the hits are drawn, None for none.
        runtime: the bundle's engine.
        precision: its arithmetic.
        threads: CPU threads, None for all.
    """

    bundle: Path = Path("bundle")
    top: int = 10
    threshold: float | None = None
    modality: tuple[Modality, ...] = ()
    path: str | None = None
    where: tuple[str, ...] = ()
    dim: int | None = None
    form: Form = Form.AUTO
    instruction: str | None = None
    sheet: Path | None = None
    runtime: Runtime = Runtime.AUTO
    precision: PrecisionChoice = PrecisionChoice.AUTO
    threads: int | None = None

    @property
    def filters(self) -> Filters:
        """Which rows may be found.

        Raises:
            UsageError: a `where` is not `column=value`.
        """
        return Filters(self.modality, self.path, parse_where(self.where))


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        queries: what was asked.
        hits: of each query.
        warnings: what should be known of them.
        heading: index, model and engine, for a sheet.
        corpus: the folder that the hits' paths are relative to.
    """

    queries: list[Query]
    hits: list[list[Hit]]
    warnings: list[str]
    heading: str
    corpus: Path


def find(path: Path, asked: Asked, config: SearchConfig) -> Answer:
    """Answer queries from an index.

    Raises:
        UsageError: nothing is asked, or something that the index cannot answer.
        PumaError: no index or bundle there, or not of the same model.
    """
    filters = config.filters
    index = Index.open(path)
    queries = _queries(asked, config.instruction)
    rows = [_row_of(index, name) for name in asked.like]
    if not queries and not rows:
        raise UsageError(
            'nothing to search for; give words ("a fox"), --image FILE, --queries FILE or --like ID'
        )
    allowed = filters.rows(index.table, len(index)) if filters else None
    wanted = Wanted(
        config.top,
        SearchSettings(config.form, config.dim, allowed, config.threads),
        config.threshold,
        (*[None] * len(queries), *rows),
    )
    model = _Model(config) if queries else None
    warnings = [] if model is None else model.warnings(index, config.dim)
    if config.form is Form.AUTO and index.warning:
        warnings.append(index.warning)
    vectors = [np.asarray(index.vectors)[rows].astype(np.float32)]
    if model is not None:
        vectors.insert(0, shorten(model.embed(queries), index.header.dimension))
    corpus = Path(index.header.corpus)
    known = [_as_query(index, corpus, row) for row in rows]
    hits = search(index, np.concatenate(vectors), wanted)
    engine = "" if model is None else f", {model.engine.name}"
    heading = f"{len(index)} items in {corpus}\nmodel {index.header.model_id}{engine}"
    return Answer([*queries, *known], hits, warnings, heading, corpus)


class _Model:
    """The bundle that embeds the queries."""

    def __init__(self, config: SearchConfig) -> None:
        self._config = config
        self._bundle = Bundle.open(config.bundle)

    @cached_property
    def engine(self) -> Engine:
        config = self._config
        return open_engine(self._bundle, config.runtime, config.precision, config.threads)

    def warnings(self, index: Index, dim: int | None) -> list[str]:
        """Check that its queries can be compared with the rows, and say what is to be known."""
        manifest = self._bundle.manifest
        mismatch = index.require_model(manifest, self.engine.precision)
        found = [
            *gate_warning(self._bundle),
            *dimension_warning(self._bundle, dim),
            *([mismatch] if mismatch else []),
        ]
        return found

    def embed(self, queries: list[Query]) -> Float32:
        bundle = self._bundle
        instructions = bundle.manifest.instructions
        return embed_queries(queries, bundle.spec, self.engine.encoder, instructions)


def gate_warning(bundle: Bundle) -> list[str]:
    """What to say of a bundle that failed its parity check."""
    if bundle.manifest.gate == "passed":
        return []
    return [f"{bundle.folder} failed its parity check and was exported anyway"]


def dimension_warning(bundle: Bundle, dim: int | None) -> list[str]:
    """What to say of embeddings cut to a length they were not trained for."""
    manifest = bundle.manifest
    if not dim or dim in (manifest.dimension, *manifest.matryoshka):
        return []
    trained = ", ".join(map(str, manifest.matryoshka)) or "none"
    return [f"the model was not trained for {dim} dimensions (trained: {trained})"]


def _queries(asked: Asked, instruction: str | None) -> list[Query]:
    found = [Query(one, asked.image, instruction) for one in asked.texts]
    if asked.image is not None and not found:
        found = [Query(None, asked.image, instruction)]
    if asked.queries is not None:
        found += read_queries(asked.queries, instruction)
    return found


def _row_of(index: Index, name: str) -> int:
    """The row with an id; or of a number, where no id is that number."""
    name = printable(name)
    row = index.table.find(name)
    if row is None and name.isdecimal() and int(name) < len(index):
        row = int(name)
    if row is None:
        raise PumaError(
            f"--like {name}: {index.path} has no row with that id; ids are what search and "
            "the id column of the .parquet show, and a number is a row's place"
        )
    return row


def _as_query(index: Index, corpus: Path, row: int) -> Query:
    (record,) = index.records([row])
    image = None if record.modality is Modality.TEXT else locate(corpus, record.path)
    return Query(record.text or None, image, None, record.id)
