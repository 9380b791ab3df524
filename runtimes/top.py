"""The best rows of many queries, kept while the scores go by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puma_edge.inputs import Float32

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """The best rows for each query, best first; equal scores by row.

    Attributes:
        scores: [queries, k], float32; -inf for rows that are not numbers.
        rows: [queries, k], int64.

    """

    scores: Float32
    rows: Int64


class Top:
    """The best rows of each query so far, and those since the last sorting that may be among them.

    Scores of later rows are compared with the worst kept one of their query in a single pass, and
    what passes waits: sorting each chunk for each query would cost more than the products.
    """

    def __init__(self, queries: int, size: int) -> None:
        """Keep `size` rows, at least one, of each of `queries`."""
        self._queries, self._size = queries, size
        self._floor = np.full(queries, -np.inf, np.float32)
        self._full = False
        self._none = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
        self._waiting = [self._none]
        self._count = 0

    def add(self, scores: Float32, rows: Int64 | int) -> None:
        """Take in scores [n, queries] without NaN of rows that come in rising order.

        Args:
            scores: a column per query.
            rows: the rows' numbers [n], or the first of n that follow each other.

        """
        if len(scores) > self._size and not self._full:
            # None of the rows below the chunk's own best can be among the best of all.
            place = len(scores) - self._size
            chosen = scores >= np.partition(scores, place, axis=0)[place]
        elif self._full:
            chosen = scores > self._floor  # a later row with an equal score loses the tie
        else:
            chosen = np.ones(scores.shape, bool)
        flat = np.flatnonzero(chosen)
        if not len(flat):
            return
        places, queries = np.divmod(flat, self._queries)
        numbers = places + rows if isinstance(rows, int) else rows[places]
        self._waiting.append((queries, scores.reshape(-1)[flat], numbers))
        self._count += len(flat)
        if not self._full or self._count > 4 * self._queries * self._size:
            self._sort()

    def found(self) -> Found:
        """The best rows so far; every query has seen the same number of rows."""
        queries, scores, rows = self._sort()
        kept = len(queries) // max(self._queries, 1)
        shape = (self._queries, kept)
        return Found(scores.reshape(shape), rows.reshape(shape))

    def _sort(self) -> tuple[Int64, Float32, Int64]:
        queries, scores, rows = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        order = np.lexsort((rows, -scores, queries))
        queries = queries[order]
        starts = np.searchsorted(queries, np.arange(self._queries))
        best = np.arange(len(queries)) - starts[queries] < self._size
        kept = (queries[best], scores[order][best], rows[order][best])
        self._waiting, self._count = [kept], 0
        self._full = len(kept[0]) == self._queries * self._size
        if self._full:
            self._floor = kept[1].reshape(self._queries, self._size)[:, -1]
        return kept


def join(parts: Iterable[Found], size: int) -> Found:
    """The best of what was found among several parts of the rows, in any order."""
    every = list(parts)
    scores = np.concatenate([part.scores for part in every], axis=1)
    rows = np.concatenate([part.rows for part in every], axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :size]
    return Found(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))
