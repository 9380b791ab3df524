"""Rows of numbers in fewer bytes: int8 with a scale per row, and bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.inputs import Float32
from puma_edge.runtimes.kernels import Int8, UInt8

_SEED = 1536


@dataclass(frozen=True)
class Coded:
    """Rows as int8.

    Attributes:
        codes: [n, d], from -127 to 127.
        scales: [n], float32; a row is about its codes times its scale. 0 for a row of zeros.

    """

    codes: Int8
    scales: Float32


def to_int8(rows: NDArray[Any]) -> Coded:
    """Round finite rows [n, d] to 127 steps up to the largest magnitude of each, on both sides."""
    rows = rows.astype(np.float32, copy=False)
    scales = np.abs(rows).max(axis=1, initial=0) / np.float32(127)
    # A row of zeros, or of numbers so small that their scale is none, stays one of zeros.
    steps = rows / np.where(scales > 0, scales, np.float32(np.inf))[:, None]
    return Coded(np.clip(np.rint(steps), -127, 127).astype(np.int8), scales)


@dataclass(frozen=True)
class Rotation:
    """How rows become bits: the signs of their centred and rotated numbers.

    Embeddings lie in a narrow cone, so that most signs of the plain numbers are the same for all
    of them; and a few dimensions carry most of the difference. Centring mends the one, turning by
    a random rotation the other (Gong and Lazebnik, 2011; Gao and Long, 2024).

    Attributes:
        centre: [d], the mean of the rows.
        axes: [d, d], orthogonal.

    """

    centre: Float32
    axes: Float32

    @classmethod
    def draw(cls, centre: Float32) -> Rotation:
        """Draw a rotation about the centre [d], each time the same."""
        size = len(centre)
        drawn = np.random.default_rng(_SEED).standard_normal((size, size))
        axes = np.linalg.qr(drawn)[0].astype(np.float32)
        return cls(centre, axes)

    def to_bits(self, rows: NDArray[Any]) -> UInt8:
        """Pack the signs of rows [n, d], eight a byte: [n, ceil(d / 8)]."""
        turned = (rows.astype(np.float32, copy=False) - self.centre) @ self.axes
        return np.packbits(turned > 0, axis=1)
