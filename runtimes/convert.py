"""An index in another form, and the recall that it costs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError, UsageError, require
from puma_edge.inputs import Float32
from puma_edge.runtimes.derived import blocks, write_binary, write_int8
from puma_edge.runtimes.files import disk_errors, locked, replacing, sync_folder, write_header
from puma_edge.runtimes.graph import Tell, write_graph
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.notes import form_files, present_forms
from puma_edge.runtimes.top import Int64
from puma_edge.runtimes.vectors import Form, Storage, Target
from puma_edge.runtimes.writer import (
    dump_header,
    find_file,
    finish_publishing,
    index_files,
    partial_folder,
)

_QUERIES, _HITS = 200, 10


_STORAGE = {Target.FP16: Storage.FLOAT16, Target.FP32: Storage.FLOAT32}


@dataclass(frozen=True)
class Conversion:
    """What was made.

    Attributes:
        index: the index.
        to: the form.
        sizes: file name -> bytes, of what was written.
        recall: share of the 10 best rows (fewer in a small index) that search in this form finds
            again, over queries drawn from the index's own rows, each left out of its own answer;
            None where the index has no two rows.
        queries: how many were drawn.

    """

    index: Path
    to: Target
    sizes: dict[str, int]
    recall: float | None
    queries: int


def convert(path: Path, to: Target, tell: Tell | None = None) -> Conversion:
    """Write files for faster search beside an index, or change how it stores its numbers.

    int8, binary and hnsw are files beside the index, which stays as it is. fp16 and fp32 take its
    place, in one rename, and the files that were there are made again.

    Args:
        path: the .npy.
        to: the form.
        tell: told how many rows a graph has, and will have: it takes minutes a million.

    Raises:
        MissingExtraError: a graph is asked for, or there, and usearch is not.
        UsageError: the index is stored so already.
        PumaError: there is no index, a row is not finite, another run is writing, or the disk
            refuses.

    """
    with disk_errors(path), _alone(path):
        finish_publishing(path)
        index = Index.open(path)
        if to in _STORAGE and index.header.dtype == _STORAGE[to].value:
            raise UsageError(f"{path} holds {index.header.dtype} already; there is nothing to do")
        rows = _draw(len(index))
        queries = np.asarray(index.vectors)[rows].astype(np.float32)
        usable = rows[np.isfinite(queries).all(axis=1)]
        queries = queries[np.isfinite(queries).all(axis=1)]
        expected = _neighbours(index, queries, usable, Form.EXACT)
        if to in _STORAGE:
            form, files = Form.EXACT, [path]
            forms = present_forms(path)
            if Form.HNSW in forms:
                require("usearch", "hnsw")
            _store(index, _STORAGE[to])
            for other in forms:
                _write(other, Index.open(path), tell)
        else:
            form = Form(to.value)
            _write(form, index, tell)
            files = form_files(path, form)
    found = _neighbours(Index.open(path), queries, usable, form)
    sizes = {file.name: file.stat().st_size for file in files}
    return Conversion(path, to, sizes, _overlap(found, expected), len(usable))


def _write(form: Form, index: Index, tell: Tell | None) -> None:
    vectors = np.asarray(index.vectors)
    match form:
        case Form.INT8:
            write_int8(index.path, vectors)
        case Form.BINARY:
            write_binary(index.path, vectors)
        case Form.HNSW:
            write_graph(index.path, vectors, tell)


def _draw(count: int) -> Int64:
    drawn = np.random.default_rng(0).choice(count, min(count, _QUERIES), replace=False)
    return np.sort(drawn)


def _neighbours(index: Index, queries: Float32, rows: Int64, form: Form) -> Int64:
    """The best other rows of each of some rows: [queries, k]."""
    found = index.search(queries, _HITS + 1, SearchSettings(form)).rows
    others = [
        line[line != row][: found.shape[1] - 1] for line, row in zip(found, rows, strict=True)
    ]
    return np.asarray(others, np.int64).reshape(len(rows), -1 if len(rows) else 0)


def _overlap(found: Int64, expected: Int64) -> float | None:
    if not expected.size:
        return None
    pairs = zip(found, expected, strict=True)
    return float(np.mean([len(np.intersect1d(*pair)) for pair in pairs]) / expected.shape[1])


def _store(index: Index, storage: Storage) -> None:
    """Put the same rows, stored in another type, in the index's place."""
    out = index.path
    staging, ready = (partial_folder(out) / name for name in ("staging", "ready"))
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    _, _, info, matrix = (staging / name for name in index_files(out))
    header = replace(index.header, dtype=storage.value)
    try:
        with replacing(info) as file:
            file.write(dump_header(header))
        with replacing(matrix) as file:
            write_header(file, index.vectors.shape, storage.dtype)
            for begin, block in blocks(np.asarray(index.vectors)):
                file.write(_cast(block, begin, storage).data)
    except (OSError, PumaError):
        shutil.rmtree(staging, ignore_errors=True)
        raise
    os.replace(staging, ready)
    sync_folder(ready.parent)
    finish_publishing(out)


def _cast(block: Float32, begin: int, storage: Storage) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        cast = block.astype(storage.dtype)
    if not (finite := np.isfinite(cast).all(axis=1)).all():
        row = begin + int(np.argmin(finite))
        raise PumaError(f"row {row} of the index has numbers too large for {storage.value}")
    return cast


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the index for this process; work of a cut-off `embed` on it stays where it is."""
    if not find_file(path, path.name).is_file():
        Index.open(path)  # says what is wrong before a folder is made
    work = partial_folder(path)
    with locked(work, path):
        try:
            yield
        finally:
            if [file.name for file in work.iterdir()] == ["lock"]:
                (work / "lock").unlink()
                with suppress(OSError):  # another run is already waiting in it
                    work.rmdir()
