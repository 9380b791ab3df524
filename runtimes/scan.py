"""Going through all rows of an index in chunks, on several threads, with the best rows kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import UsageError
from puma_edge.inputs import Float32
from puma_edge.runtimes.codes import Coded, Rotation, to_int8
from puma_edge.runtimes.kernels import Kernel, UInt8, bit_distances, int8_products
from puma_edge.runtimes.top import Found, Int64, Top, join
from puma_edge.runtimes.vectors import shorten

Allowed = NDArray[np.bool_]  # [rows]: which of them a filter leaves
Place = slice | Int64
QUERIES = 256  # at once: their scores of a chunk have to stay in the cache
_ELEMENTS = 2**17  # scores of a chunk, for the same reason
_CHUNK = 16384  # rows at most
_CONVERTED = 2048  # rows at most where they are turned into fp32 first


@dataclass(frozen=True)
class Rows:
    """Which rows to go through, and how.

    Attributes:
        total: rows there are.
        allowed: [total], None for all of them.
        threads: how many share the work.

    Raises:
        UsageError: `allowed` is something else, such as row numbers, or there are no threads.

    """

    total: int
    allowed: Allowed | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        given: object = self.allowed
        mask = isinstance(given, np.ndarray) and given.dtype == bool
        values = np.asarray(given)
        if given is not None and not (mask and values.shape == (self.total,)):
            raise UsageError(
                f"allowed is {type(given).__name__} of {values.dtype} {values.shape}; expected an "
                f"array of {self.total} bools, one for each row"
            )
        if self.threads < 1:
            raise UsageError(f"{self.threads} threads asked for; expected 1 or more")

    @property
    def count(self) -> int:
        """Rows that are gone through."""
        return self.total if self.allowed is None else int(np.count_nonzero(self.allowed))

    def pieces(self, chunk: int) -> Iterator[Place]:
        """Chunks of row numbers, in rising order."""
        for begin in range(0, self.total, chunk):
            end = min(begin + chunk, self.total)
            if self.allowed is None:
                yield slice(begin, end)
                continue
            local = np.flatnonzero(self.allowed[begin:end])
            if len(local) == end - begin:
                yield slice(begin, end)
            elif len(local):
                yield local + begin


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def scan_exactly(vectors: NDArray[Any], queries: Float32, size: int, rows: Rows) -> Found:
    """Find the rows with the largest inner products, computed in fp32.

    Args:
        vectors: [rows, d or more]; what lies beyond d is cut off, and the rest normalised again.
        queries: [queries, d].
        size: rows wanted of each query; all of them where there are fewer.
        rows: which of the vectors.

    """
    width = queries.shape[1]

    def score(place: Place) -> Float32:
        products: Float32 = shorten(vectors[place], width) @ queries.T
        np.nan_to_num(products, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        return products

    whole = vectors.dtype == np.float32 and vectors.shape[1] == width
    # BLAS brings its own threads.
    part = Rows(rows.total, rows.allowed)
    return _scan(score, len(queries), size, part, _CHUNK if whole else _CONVERTED)


def scan_int8(rows: Coded, queries: Float32, size: int, part: Rows, kernel: Kernel) -> Found:
    """Find the rows with the largest inner products of int8 codes.

    The scores are those of the rows times a factor for each query.
    """
    products = int8_products(to_int8(queries).codes, kernel)

    def score(place: Place) -> Float32:
        scales = rows.scales[place][:, None]
        return np.multiply(
            products(rows.codes[place]), scales, dtype=np.float32, casting="same_kind"
        )

    most = _CONVERTED if kernel is Kernel.NUMPY else _CHUNK
    return _scan(score, len(queries), size, part, most)


def scan_bits(
    bits: UInt8, rotation: Rotation, queries: Float32, size: int, part: Rows, kernel: Kernel
) -> Found:
    """Find the rows with the fewest bits that differ; scores are minus their count."""
    distances = bit_distances(rotation.to_bits(queries), kernel)

    def score(place: Place) -> Float32:
        return np.negative(distances(bits[place]), dtype=np.float32, casting="unsafe")

    return _scan(score, len(queries), size, part, _CHUNK)


def rescore(vectors: NDArray[Any], queries: Float32, rows: Int64, size: int) -> Found:
    """Score candidate rows [queries, candidates] in fp32 and keep the best of each query."""
    width = queries.shape[1]
    scores = np.empty(rows.shape, np.float32)
    for number, (query, candidates) in enumerate(zip(queries, rows, strict=True)):
        # Not a product with a matrix: there the last bits depend on the place among the candidates.
        scores[number] = np.vecdot(shorten(vectors[candidates], width), query)
    return join([Found(scores, rows)], size)


def _scan(
    score: Callable[[Place], Float32], queries: int, size: int, rows: Rows, most: int
) -> Found:
    size = min(size, rows.count)
    if not size or not queries:
        shape = (queries, size)
        return Found(np.empty(shape, np.float32), np.empty(shape, np.int64))
    chunk = min(max(_ELEMENTS // queries, 1), most)

    pieces, lock = rows.pieces(chunk), Lock()

    def work(_: int) -> Found:
        top = Top(queries, size)
        while True:
            # Taken one by one: a core that is slower, or busy with other work, takes fewer.
            with lock:
                place = next(pieces, None)
            if place is None:
                return top.found()
            top.add(score(place), place.start if isinstance(place, slice) else place)

    if rows.threads == 1:
        return work(0)
    with ThreadPoolExecutor(rows.threads) as pool:
        return join(pool.map(work, range(rows.threads)), size)
