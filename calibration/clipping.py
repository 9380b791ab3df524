"""Where an 8-bit range ends: histograms of activations, and four ways to choose from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puma_edge.config import Ranges

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Ranges are tried down to a tenth of the full one: 8192 bins leave three to a level even there.
BINS = 8192
PERCENTILE = 99.99
SHRUNK = np.linspace(0.1, 1.0, 46)


@dataclass(frozen=True)
class Histogram:
    """Counts [bins] of values in equal steps from `low` to `high`."""

    low: float
    high: float
    counts: Int64

    @property
    def centres(self) -> Float64:
        """The middle of each bin."""
        step = (self.high - self.low) / len(self.counts)
        middle: Float64 = self.low + step * (np.arange(len(self.counts), dtype=np.float64) + 0.5)
        return middle

    def __add__(self, other: Histogram) -> Histogram:
        """Both counted together; they have the same ends."""
        return Histogram(self.low, self.high, self.counts + other.counts)


@dataclass(frozen=True)
class Grid:
    """The levels an 8-bit number can take: level = round(value / scale), within two ends."""

    scale: Float64
    first: Float64
    last: Float64

    @classmethod
    def over(cls, low: Float64, high: Float64, symmetric: bool) -> Grid:
        """256 levels from `low` to `high`, or 255 around zero."""
        if symmetric:
            scale = np.maximum(-low, high) / 127
            return cls(scale, np.full_like(scale, -127), np.full_like(scale, 127))
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        return cls(scale, -zero, 255 - zero)

    def level(self, values: Float64) -> Float64:
        """The level [..., values] of each value."""
        steps = np.rint(values / self.scale[..., None])
        return np.clip(steps, self.first[..., None], self.last[..., None])


def choose(seen: Histogram, ranges: Ranges, symmetric: bool) -> tuple[float, float]:
    """The ends of the range, zero always within them.

    Args:
        seen: what calibration data showed.
        ranges: how to choose.
        symmetric: whether the levels lie around zero.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if low == high or not seen.counts.any():
        return low, high
    match ranges:
        case Ranges.MINMAX:
            return low, high
        case Ranges.PERCENTILE:
            return _percentile(seen)
        case Ranges.ENTROPY:
            return _least(low, high, symmetric, seen, _divergence)
        case Ranges.MSE:
            return _least(low, high, symmetric, seen, _square_error)


def _percentile(seen: Histogram) -> tuple[float, float]:
    """Half of the share that is cut off is cut off at each end."""
    share = np.cumsum(seen.counts) / seen.counts.sum()
    tail = (1 - PERCENTILE / 100) / 2
    edges = np.linspace(seen.low, seen.high, len(seen.counts) + 1)
    low = edges[np.searchsorted(share, tail, side="right")]
    high = edges[np.searchsorted(share, 1 - tail, side="left") + 1]
    return min(float(low), 0.0), max(float(high), 0.0)


def _least(
    low: float,
    high: float,
    symmetric: bool,
    seen: Histogram,
    cost: Callable[[Histogram, Grid], Float64],
) -> tuple[float, float]:
    """The pair of ends, each shrunk by itself, that costs least; the widest of equals."""
    by_low = SHRUNK[::-1] if low < 0 and not symmetric else np.ones(1)
    by_high = SHRUNK[::-1] if high > 0 or symmetric else np.ones(1)
    lows = low * np.repeat(by_low, len(by_high))
    highs = high * np.tile(by_high, len(by_low))
    if symmetric:
        lows = low * by_high
    costs = [
        cost(seen, Grid.over(lows[part : part + 46], highs[part : part + 46], symmetric))
        for part in range(0, len(lows), 46)  # a few megabytes at a time
    ]
    best = int(np.argmin(np.concatenate(costs)))
    return float(lows[best]), float(highs[best])


def _square_error(seen: Histogram, grid: Grid) -> Float64:
    """Sum of squares [candidates] of what rounding and clipping change."""
    filled = seen.counts > 0
    values, counts = seen.centres[filled], seen.counts[filled]
    restored = grid.level(values) * grid.scale[:, None]
    error: Float64 = ((restored - values) ** 2 * counts).sum(axis=1)
    return error


def _divergence(seen: Histogram, grid: Grid) -> Float64:
    """KL divergence [candidates] of the levels' distribution from the clipped one.

    The reference holds what is clipped in its outermost bins; a level's own mass, without that, is
    spread evenly over the filled bins it stands for (NVIDIA, "8-bit inference with TensorRT",
    2017).
    """
    filled = seen.counts > 0
    values, counts = seen.centres[filled], seen.counts[filled].astype(np.float64)
    return np.asarray(
        [
            _divergence_of(values, counts, Grid(*(np.atleast_1d(one) for one in ends)))
            for ends in zip(grid.scale, grid.first, grid.last, strict=True)
        ]
    )


def _divergence_of(values: Float64, counts: Float64, grid: Grid) -> float:
    steps = np.rint(values / grid.scale[0])
    inside = (steps >= grid.first[0]) & (steps <= grid.last[0])
    if inside.sum() < 2:
        return np.inf
    reference = counts[inside].copy()
    reference[0] += counts[: int(np.argmax(inside))].sum()
    reference[-1] += counts[len(inside) - int(np.argmax(inside[::-1])) :].sum()
    levels = (steps[inside] - grid.first[0]).astype(np.int64)
    mass = np.bincount(levels, counts[inside], 256)
    bins = np.bincount(levels, minlength=256)
    spread = (mass / np.maximum(bins, 1))[levels]
    p, q = reference / reference.sum(), spread / spread.sum()
    return float((p * np.log(p / q)).sum())
