"""What an index knows of its rows: the table beside it, read a group of rows at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from puma_edge.errors import PumaError
from puma_edge.prompts import Modality
from puma_edge.runtimes.tables import open_file
from puma_edge.runtimes.writer import SCHEMA

AGAIN = "write it again: puma-edge embed"


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
class Table:
    """The table at `path`, a row for each row of the index.

    Opened once: what takes the file's place later does not belong to the vectors that were mapped
    with it. Threads may share it.
    """

    path: Path
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def records(self, rows: Sequence[int]) -> list[Record]:
        """Look up some rows.

        Raises:
            PumaError: the table is damaged.

        """
        with self._reading() as file:
            groups = {row: self._group(row) for row in rows}
            tables: dict[int, pa.Table] = {
                group: file.read_row_group(group) for group in set(groups.values())
            }
            return [_record(tables[groups[row]], row - self._starts[groups[row]]) for row in rows]

    def blocks(self, size: int) -> Iterator[pa.RecordBatch]:
        """Go through all rows, at most `size` at a time.

        Raises:
            PumaError: the table is damaged.

        """
        with self._reading() as file:
            groups = file.num_row_groups
        for group in range(groups):
            with self._reading() as file:
                rows = file.read_row_group(group)
            yield from rows.to_batches(size)

    def column(self, name: str) -> list[str]:
        """One column of all rows.

        Raises:
            PumaError: the table is damaged.

        """
        with self._reading() as file:
            values: list[str] = file.read([name]).column(0).to_pylist()
        return values

    def find(self, name: str) -> int | None:
        """The first row with this id, None if there is none.

        Raises:
            PumaError: the table is damaged.

        """
        with self._reading() as file:
            row: int = file.read(["id"]).column(0).index(name).as_py()
        return row if row >= 0 else None

    def count(self) -> int:
        """Count the rows.

        Raises:
            PumaError: the table is damaged.

        """
        with self._reading() as file:
            if file.schema_arrow.names != SCHEMA.names:
                raise ValueError(f"columns {file.schema_arrow.names}")
            return int(file.metadata.num_rows)

    @contextmanager
    def _reading(self) -> Iterator[pq.ParquetFile]:
        """Lend the file to one thread; two that read at once would end the process."""
        try:
            with self._lock:
                yield self._file
        except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
            raise PumaError(f"the table {self.path} is damaged ({error}); {AGAIN}") from None

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(open_file(self.path))

    @cached_property
    def _starts(self) -> list[int]:
        info = self._file.metadata
        sizes = [info.row_group(group).num_rows for group in range(info.num_row_groups)]
        return [0, *itertools.accumulate(sizes)][:-1]

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1


def _record(table: pa.Table, row: int) -> Record:
    values: dict[str, str] = table.slice(row, 1).to_pylist()[0]
    metadata = json.loads(values["metadata"]) if values["metadata"] else {}
    modality = Modality(values["modality"])
    return Record(values["id"], values["path"], modality, values["hash"], values["text"], metadata)
