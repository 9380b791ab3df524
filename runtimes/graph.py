"""A graph over the int8 rows of an index (HNSW), for more rows than can be gone through each time.

usearch builds and walks it (Malkov and Yashunin, 2016). It holds the rows as int8 and is mapped
from its file. What the walk finds is scored again with the rows themselves, as in every form.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError, require
from puma_edge.inputs import Float32
from puma_edge.runtimes.codes import to_int8
from puma_edge.runtimes.derived import blocks
from puma_edge.runtimes.files import sync_folder
from puma_edge.runtimes.notes import check_note, form_files, sample, unusable, write_note
from puma_edge.runtimes.scan import usable_cores
from puma_edge.runtimes.top import Int64
from puma_edge.runtimes.vectors import Form

Tell = Callable[[int, int], None]  # rows done, rows in all
_CONNECTIVITY = 16  # neighbours of a row, usearch's own choice
_WIDTH_ADD = 128  # candidates kept while a row is put in
_WIDTH = 256  # candidates kept while a query walks: more find more, and take longer


@dataclass(frozen=True)
class Graph:
    """An opened graph.

    Attributes:
        index: usearch's, whose keys are row numbers.

    """

    index: Any

    def nearest(self, queries: Float32, many: int, threads: int) -> Int64 | None:
        """Walk to about the `many` nearest rows of each query: [queries, many].

        Returns:
            None where the walk reaches too few of the rows for one of the queries.

        """
        codes = to_int8(queries).codes
        if not many or not len(codes):
            return np.empty((len(codes), many), np.int64)
        self.index.expansion_search = max(_WIDTH, many)
        found = self.index.search(codes, many, threads=threads)
        keys = np.asarray(found.keys).reshape(len(codes), -1)
        counts = np.asarray(getattr(found, "counts", len(found)))  # one query has no counts
        if keys.shape[1] < many or (counts < many).any():
            return None
        return keys.astype(np.int64)


def write_graph(index: Path, vectors: NDArray[Any], tell: Tell | None = None) -> None:
    """Build `index.hnsw.usearch`, on all cores; it differs a little each time.

    Raises:
        MissingExtraError: usearch is not installed.
        PumaError: a row holds something that is no number, or the disk refuses.
        OSError: the disk refuses.

    """
    file, note = form_files(index, Form.HNSW)
    usearch = require("usearch.index", "hnsw")
    note.unlink(missing_ok=True)
    made = usearch.Index(
        ndim=vectors.shape[1],
        metric=usearch.MetricKind.Cos,  # rows and their codes differ by a scale each
        dtype=usearch.ScalarKind.I8,
        connectivity=_CONNECTIVITY,
        expansion_add=_WIDTH_ADD,
    )
    for begin, block in blocks(vectors):
        keys = np.arange(begin, begin + len(block), dtype=np.uint64)
        made.add(keys, to_int8(block).codes, threads=usable_cores())
        if tell is not None:
            tell(begin + len(block), len(vectors))
    _save(made, file)
    write_note(index, Form.HNSW, whole=True)


def _save(made: Any, file: Path) -> None:
    work = file.with_name(file.name + ".tmp")
    try:
        try:
            made.save(str(work))
        except RuntimeError as error:  # what usearch raises, whatever the disk said
            raise PumaError(f"cannot write {file} ({error}); what was there is kept") from None
        with work.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(work, file)
    finally:
        work.unlink(missing_ok=True)
    sync_folder(file.parent)


def open_graph(index: Path, vectors: NDArray[Any]) -> Graph:
    """Map the graph of an index [rows, d].

    Raises:
        UnusableError: it is not there, damaged, or not that of this index.
        MissingExtraError: usearch is not installed.

    """
    file, _ = form_files(index, Form.HNSW)
    check_note(index, Form.HNSW)
    usearch = require("usearch.index", "hnsw")
    try:
        found = usearch.Index.restore(str(file), view=True)
    except (RuntimeError, ValueError) as error:
        raise unusable(file, Form.HNSW, f"it is damaged ({error})") from None
    if found is None or (len(found), found.ndim) != vectors.shape:
        raise unusable(file, Form.HNSW, f"it does not hold {vectors.shape} numbers")
    rows = sample(len(vectors))
    again = to_int8(vectors[rows]).codes
    if any(
        not np.array_equal(found.get(int(row)), codes)
        for row, codes in zip(rows, again, strict=True)
    ):
        raise unusable(file, Form.HNSW, "some of its rows are not those of the index")
    return Graph(found)
