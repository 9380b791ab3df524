"""Embeddings as rows of numbers: how they are stored, and how they are shortened."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.inputs import Float32


class Storage(str, Enum):
    """The type of the numbers in an index."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's name for it, little-endian wherever it is written."""
        little: np.dtype[Any] = np.dtype(self.value).newbyteorder("<")
        return little


class Form(str, Enum):
    """In what form the rows are gone through."""

    AUTO = "auto"
    EXACT = "exact"
    INT8 = "int8"
    BINARY = "binary"
    HNSW = "hnsw"  # not gone through, but walked along: only where it is asked for


class Target(str, Enum):
    """What an index can be converted to."""

    INT8 = "int8"
    FP16 = "fp16"
    BINARY = "binary"
    HNSW = "hnsw"
    FP32 = "fp32"


def shorten(vectors: NDArray[Any], dimension: int | None) -> Float32:
    """Keep the first `dimension` numbers of each row [n, d] and normalise again (Matryoshka).

    A row of zeros stays one.
    """
    if dimension is None or dimension == vectors.shape[1]:
        return vectors.astype(np.float32, copy=False)
    short = vectors[:, :dimension].astype(np.float32)
    norms = np.linalg.norm(short, axis=1, keepdims=True)
    result: Float32 = short / np.where(norms > 0, norms, np.float32(1))
    return result
