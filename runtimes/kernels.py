"""Products of int8 rows and distances of bits: numkong's kernels, and numpy's plain form of them.

numkong has them for AVX2, AVX-512, AMX, NEON and SVE and takes the best that the processor has;
both forms give the same whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import require

Int8 = NDArray[np.int8]
UInt8 = NDArray[np.uint8]
Score = Callable[[NDArray[Any]], NDArray[Any]]  # rows [n, d] -> a column per query [n, queries]

# Up to here one pass per query over rows that lie in the cache is faster than packed queries, whose
# kernels work on 16 at a time.
_FEW = 3
_CACHED = 512  # rows: 0.8 MB of 1,536 numbers, what a core's own cache holds
# Sums of this many products of two int8 stay below 2**24, up to where float32 counts every number.
_EXACT = 1024


class Kernel(str, Enum):
    """Whose kernels."""

    NUMKONG = "numkong"
    NUMPY = "numpy"


def best_kernel() -> Kernel:
    """The fastest one that is installed."""
    return Kernel.NUMKONG if find_spec("numkong") else Kernel.NUMPY


def int8_products(queries: Int8, kernel: Kernel) -> Score:
    """Prepare the inner products of rows [n, d] with each of the queries [queries, d].

    Raises:
        MissingExtraError: the kernel is not installed.

    """
    if kernel is Kernel.NUMPY:
        return lambda rows: _plain_products(rows, queries)
    numkong = require("numkong", "search")
    if len(queries) <= _FEW:
        ones = [np.ascontiguousarray(queries[n : n + 1]) for n in range(len(queries))]

        def few(rows: NDArray[Any]) -> NDArray[Any]:
            rows = np.ascontiguousarray(rows)
            if len(ones) == 1:
                return np.asarray(numkong.cdist(rows, ones[0], "dot"))
            result = np.empty((len(rows), len(ones)), np.int32)
            for begin in range(0, len(rows), _CACHED):
                block = slice(begin, begin + _CACHED)
                for number, one in enumerate(ones):
                    result[block, number] = np.asarray(numkong.cdist(rows[block], one, "dot"))[:, 0]
            return result

        return few
    packed = numkong.dots_pack(np.ascontiguousarray(queries))
    return lambda rows: np.asarray(numkong.dots_packed(np.ascontiguousarray(rows), packed))


def bit_distances(queries: UInt8, kernel: Kernel) -> Score:
    """Prepare the count of different bits between rows [n, bytes] and queries [queries, bytes].

    Raises:
        MissingExtraError: the kernel is not installed.

    """
    if kernel is Kernel.NUMPY:
        return lambda rows: _plain_distances(rows, queries)
    numkong = require("numkong", "search")
    packed = numkong.hammings_pack(np.ascontiguousarray(queries))

    def distances(rows: NDArray[Any]) -> NDArray[Any]:
        rows = np.ascontiguousarray(rows)
        # The only way to say that these bytes are packed bits.
        bits = numkong.from_pointer(rows.ctypes.data, rows.shape, "uint1", owner=rows)
        return np.asarray(numkong.hammings_packed(bits, packed))

    return distances


def _plain_products(rows: Int8, queries: Int8) -> NDArray[np.int32]:
    result = np.zeros((len(rows), len(queries)), np.int32)
    for begin in range(0, queries.shape[1], _EXACT):
        part = slice(begin, begin + _EXACT)
        # BLAS has no int8, and is far faster than numpy's own integer products.
        products = rows[:, part].astype(np.float32) @ queries[:, part].astype(np.float32).T
        result += products.astype(np.int32)
    return result


def _plain_distances(rows: UInt8, queries: UInt8) -> NDArray[np.int32]:
    columns = [np.bitwise_count(rows ^ query).sum(axis=1, dtype=np.int32) for query in queries]
    return np.stack(columns, axis=1)
