"""An index on disk: opened by mapping, searched in the fastest form that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.bundle import Manifest, Precision
from puma_edge.errors import PumaError, UsageError
from puma_edge.inputs import Float32
from puma_edge.runtimes.codes import Coded
from puma_edge.runtimes.derived import Bits, open_binary, open_int8
from puma_edge.runtimes.graph import Graph, open_graph
from puma_edge.runtimes.kernels import Kernel, best_kernel
from puma_edge.runtimes.notes import UnusableError, form_files
from puma_edge.runtimes.opening import map_matrix, open_table, read_header
from puma_edge.runtimes.records import AGAIN, Record, Table
from puma_edge.runtimes.scan import (
    QUERIES,
    Allowed,
    Rows,
    rescore,
    scan_bits,
    scan_exactly,
    scan_int8,
    usable_cores,
)
from puma_edge.runtimes.top import Found
from puma_edge.runtimes.vectors import Form, shorten
from puma_edge.runtimes.writer import Header, find_file, index_files

INT8_CANDIDATES = 40  # scored again; enough for recall 1.000 at 10 hits
BINARY_CANDIDATES = 400
HNSW_CANDIDATES = 100


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        form: in what form to go through the rows.
        dimension: compare the first so many numbers only, normalised again; None for all.
        allowed: [rows], which of them may be found; None for all.
        threads: None for all cores.
        kernel: whose products, None for the fastest.

    """

    form: Form = Form.AUTO
    dimension: int | None = None
    allowed: Allowed | None = None
    threads: int | None = None
    kernel: Kernel | None = None


@dataclass(frozen=True)
class Index:
    """An opened index.

    Attributes:
        path: the .npy.
        header: what `index.json` says.
        vectors: [rows, dimension], mapped from the file.
        table: what is known of the rows, row by row.

    """

    path: Path
    header: Header
    vectors: NDArray[Any]
    table: Table

    @classmethod
    def open(cls, path: Path | str) -> Index:
        """Map an index and check that its files belong together.

        Raises:
            PumaError: there is none, it is of another format version, or it is damaged.

        """
        path = Path(path)
        _, table, info, matrix = (find_file(path, name) for name in index_files(path))
        if path.suffix != ".npy" or not matrix.is_file():
            raise PumaError(
                f"there is no index at {path}; expected a .npy written by: "
                "puma-edge embed CORPUS --out index.npy"
            )
        header = read_header(info, path)
        vectors = map_matrix(matrix)
        records = open_table(table, path)
        rows = records.count()
        expected = (header.rows, header.dimension)
        if vectors.shape != expected or rows != header.rows or vectors.dtype != header.dtype:
            raise PumaError(
                f"the files of {path} do not belong together ({vectors.dtype} {vectors.shape}, "
                f"{rows} rows in {table.name}, {header.dtype} {expected} in {info.name}); {AGAIN}"
            )
        return cls(path, header, vectors, records)

    def __len__(self) -> int:
        """Rows."""
        return len(self.vectors)

    def require_model(self, manifest: Manifest, precision: Precision) -> str | None:
        """Check that queries of this model can be compared with the rows.

        Returns:
            A warning if the precision is another one than the rows were made with.

        Raises:
            PumaError: the rows come from another model.

        """
        header = self.header
        if header.model_id != manifest.model_id:
            raise PumaError(
                f"{self.path} was made with model {header.model_id}, the bundle holds "
                f"{manifest.model_id}: their embeddings cannot be compared; name the bundle that "
                "made the index (--bundle), or embed the corpus again"
            )
        if header.precision != precision.value:
            return (
                f"{self.path} was made in {header.precision}, the query is embedded in "
                f"{precision.value}: scores differ slightly (--precision {header.precision})"
            )
        return None

    def search(
        self, queries: NDArray[Any], top: int = 10, settings: SearchSettings | None = None
    ) -> Found:
        """Find the rows with the largest inner product with each query.

        Where the index has int8 rows (`puma-edge convert INDEX --to int8`), those are gone through
        and the best few are scored again with the rows themselves; otherwise all of them are.

        Args:
            queries: [queries, d]; longer ones than the rows are shortened like them.
            top: how many rows; fewer are given where there are fewer.
            settings: in what form to go through the rows, and which of them.

        Raises:
            UsageError: `top` or the dimension is out of range, or see `Rows`.
            PumaError: a query is shorter than the rows, or holds no numbers; or the form asked for
                is not there.

        """
        settings = settings or SearchSettings()
        queries = self._check(np.asarray(queries), top, settings)
        threads = usable_cores() if settings.threads is None else settings.threads
        rows = Rows(len(self), settings.allowed, threads)
        form = self._choose(settings)
        parts = [
            self._search(queries[begin : begin + QUERIES], top, form, rows, settings)
            for begin in range(0, max(len(queries), 1), QUERIES)
        ]
        return Found(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.rows for part in parts]),
        )

    @property
    def warning(self) -> str | None:
        """Why the int8 rows beside the index are not used, where they are there and cannot be."""
        if form_files(self.path, Form.INT8)[-1].exists() and isinstance(self._int8, str):
            return self._int8
        return None

    def _search(
        self, queries: Float32, top: int, form: Form, rows: Rows, settings: SearchSettings
    ) -> Found:
        kernel = settings.kernel or best_kernel()
        vectors = np.asarray(self.vectors)
        match form:
            case Form.INT8:
                coded = open_int8(self.path, vectors) if isinstance(self._int8, str) else self._int8
                many = max(INT8_CANDIDATES, 4 * top)
                found = scan_int8(coded, queries, many, rows, kernel)
            case Form.BINARY:
                many = max(BINARY_CANDIDATES, 40 * top)
                bits = self._bits
                found = scan_bits(bits.bits, bits.rotation, queries, many, rows, kernel)
            case Form.HNSW:
                many = min(max(HNSW_CANDIDATES, 4 * top), len(self))
                near = self._graph.nearest(queries, many, rows.threads)
                if near is None:
                    return self._search(queries, top, self._scanned(settings), rows, settings)
                return rescore(vectors, queries, near, top)
            case _:
                return scan_exactly(vectors, queries, top, rows)
        return rescore(vectors, queries, found.rows, top)

    def _choose(self, settings: SearchSettings) -> Form:
        width = settings.dimension or self.header.dimension
        if width != self.header.dimension and settings.form not in (Form.AUTO, Form.EXACT):
            raise UsageError(
                f"{settings.form.value} rows are made of all {self.header.dimension} dimensions; "
                "take --form exact with fewer of them"
            )
        barred = settings.allowed is not None and not settings.allowed.all()
        if settings.form is Form.AUTO or (settings.form is Form.HNSW and barred):
            return self._scanned(settings)
        return settings.form

    def _scanned(self, settings: SearchSettings) -> Form:
        """The form in which all rows are gone through, where none is asked for.

        A filter's rows too: a walk along the graph would end among those that it bars.
        """
        whole = settings.dimension in (None, self.header.dimension)
        return Form.INT8 if whole and not isinstance(self._int8, str) else Form.EXACT

    def _check(self, queries: NDArray[Any], top: int, settings: SearchSettings) -> Float32:
        width = self.header.dimension if settings.dimension is None else settings.dimension
        if top < 1:
            raise UsageError(f"top is {top}; expected 1 or more")
        if not 1 <= width <= self.header.dimension:
            raise UsageError(f"{width} dimensions asked for; the index has {self.header.dimension}")
        if queries.ndim != 2 or queries.shape[1] < self.header.dimension:
            raise PumaError(
                f"queries of shape {queries.shape} for an index of {self.header.dimension} "
                "dimensions; embed them with the model that made it"
            )
        if not np.isfinite(queries).all():
            raise PumaError("a query's embedding is not finite; try --precision fp32")
        return shorten(queries, width)

    @cached_property
    def _int8(self) -> Coded | str:
        """The int8 rows, or why there are none."""
        try:
            return open_int8(self.path, np.asarray(self.vectors))
        except UnusableError as error:
            return str(error)

    @cached_property
    def _bits(self) -> Bits:
        return open_binary(self.path, np.asarray(self.vectors))

    @cached_property
    def _graph(self) -> Graph:
        return open_graph(self.path, np.asarray(self.vectors))

    def records(self, rows: Sequence[int]) -> list[Record]:
        """Look up what is known of some rows.

        Raises:
            PumaError: the table is damaged.

        """
        return self.table.records(rows)
