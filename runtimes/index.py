"""An index on disk: opened by mapping, searched exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from puma_edge.bundle import Manifest, Precision
from puma_edge.errors import PumaError, UsageError
from puma_edge.inputs import Float32
from puma_edge.prompts import Modality
from puma_edge.runtimes.best import Best
from puma_edge.runtimes.vectors import shorten
from puma_edge.runtimes.writer import FORMAT_VERSION, SCHEMA, Header, find_file, index_files

_CHUNK = 16384  # rows: their scores stay in the cache between the product and the selection
_AGAIN = "write it again: puma-edge embed"


@dataclass(frozen=True)
class Record:
    """What an index knows of a row.

    Attributes:
        id: the document's id.
        path: the file to show, relative to the corpus.
        modality: text, image or both.
        hash: of the document's content.
        text: the beginning of its text.
        metadata: every other key of its JSONL line.

    """

    id: str
    path: str
    modality: Modality
    hash: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The best rows for each query, best first; equal scores by row.

    Attributes:
        scores: [queries, k], float32; -inf for rows that are not numbers.
        rows: [queries, k], int64.

    """

    scores: Float32
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """An opened index.

    Attributes:
        path: the .npy.
        header: what `index.json` says.
        vectors: [rows, dimension], mapped from the file.

    """

    path: Path
    header: Header
    vectors: NDArray[Any]

    @classmethod
    def open(cls, path: Path) -> Index:
        """Map an index and check that its files belong together.

        Raises:
            PumaError: there is none, it is of another format version, or it is damaged.

        """
        _, table, info, matrix = (find_file(path, name) for name in index_files(path))
        if path.suffix != ".npy" or not matrix.is_file():
            raise PumaError(
                f"there is no index at {path}; expected a .npy written by: "
                "puma-edge embed CORPUS --out index.npy"
            )
        header = _read_header(info, path)
        vectors = _map_matrix(matrix)
        rows = _count_rows(table, path)
        expected = (header.rows, header.dimension)
        if vectors.shape != expected or rows != header.rows or vectors.dtype != header.dtype:
            raise PumaError(
                f"the files of {path} do not belong together ({vectors.dtype} {vectors.shape}, "
                f"{rows} rows in {table.name}, {header.dtype} {expected} in {info.name}); {_AGAIN}"
            )
        return cls(path, header, vectors)

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

    def search(self, queries: Float32, top: int, dimension: int | None = None) -> Found:
        """Find the rows with the largest inner product with each query, exactly.

        Args:
            queries: [queries, d]; longer ones than the rows are shortened like them.
            top: how many rows; fewer are given where the index has fewer.
            dimension: compare the first so many numbers only, normalised again.

        Raises:
            UsageError: `top` or the dimension is out of range.
            PumaError: a query is shorter than the rows, or holds no numbers.

        """
        width = self.header.dimension if dimension is None else dimension
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
        best = [Best(min(top, len(self))) for _ in queries]
        queries = shorten(queries, width)
        for begin in range(0, len(self), _CHUNK):
            rows = shorten(self.vectors[begin : begin + _CHUNK], width)
            scores = np.nan_to_num(
                queries @ rows.T, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf
            )
            for one, line in zip(best, scores, strict=True):
                one.add(line, begin)
        shape = (len(best), min(top, len(self)))
        return Found(
            np.asarray([one.scores for one in best], np.float32).reshape(shape),
            np.asarray([one.rows for one in best], np.int64).reshape(shape),
        )

    def records(self, rows: Sequence[int]) -> list[Record]:
        """Look up what is known of some rows.

        Raises:
            PumaError: the table is damaged.

        """
        try:
            groups = {row: self._group(row) for row in rows}
            tables: dict[int, pa.Table] = {
                group: self._table.read_row_group(group) for group in set(groups.values())
            }
            return [_record(tables[groups[row]], row - self._starts[groups[row]]) for row in rows]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise PumaError(f"the table of {self.path} is damaged ({error}); {_AGAIN}") from None

    @cached_property
    def _table(self) -> pq.ParquetFile:
        return pq.ParquetFile(find_file(self.path, index_files(self.path)[1]))

    @cached_property
    def _starts(self) -> list[int]:
        info = self._table.metadata
        sizes = [info.row_group(group).num_rows for group in range(info.num_row_groups)]
        return [sum(sizes[:group]) for group in range(len(sizes))]

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1


def _record(table: pa.Table, row: int) -> Record:
    values: dict[str, str] = table.slice(row, 1).to_pylist()[0]
    metadata = json.loads(values["metadata"]) if values["metadata"] else {}
    modality = Modality(values["modality"])
    return Record(values["id"], values["path"], modality, values["hash"], values["text"], metadata)


def _read_header(path: Path, index: Path) -> Header:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
    except FileNotFoundError:
        raise PumaError(f"{index} has no {path.name} beside it; {_AGAIN}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PumaError(f"{path} is damaged ({error}); {_AGAIN}") from None
    if version != FORMAT_VERSION:
        raise PumaError(
            f"{index} has format version {version}, this puma-edge reads {FORMAT_VERSION}; {_AGAIN}"
        )
    try:
        return Header(**values)
    except TypeError as error:
        raise PumaError(f"{path} is damaged ({error}); {_AGAIN}") from None


def _map_matrix(path: Path) -> NDArray[Any]:
    try:
        vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.ndim == 2:
            return vectors
        reason = f"it has {vectors.ndim} axes"
    except (OSError, ValueError, EOFError, AttributeError) as error:
        reason = str(error)
    raise PumaError(f"{path} is no index ({reason}); {_AGAIN}")


def _count_rows(path: Path, index: Path) -> int:
    try:
        info = pq.read_metadata(path)
        if info.schema.to_arrow_schema().names != SCHEMA.names:
            raise ValueError(f"columns {info.schema.to_arrow_schema().names}")
        return int(info.num_rows)
    except FileNotFoundError:
        raise PumaError(f"{index} has no {path.name} beside it; {_AGAIN}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PumaError(f"{path} is damaged ({error}); {_AGAIN}") from None
