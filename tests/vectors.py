"""Unit vectors to search, and search by sorting every score."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from puma_edge.runtimes.kernels import Kernel, best_kernel
from puma_edge.runtimes.top import Found

KERNELS = [Kernel.NUMPY] if best_kernel() is Kernel.NUMPY else [Kernel.NUMPY, Kernel.NUMKONG]


def units(rows: int, width: int = 24, seed: int = 3) -> np.ndarray:
    """Unit rows of any direction, no two of them equal."""
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit rows in clusters of about 50, in a narrow cone, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(rows // 50, 1), width)) + 2
    drawn = centres[rng.integers(0, len(centres), rows)] + 0.5 * rng.standard_normal((rows, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def brute(scores: np.ndarray, top: int) -> Found:
    """The best of scores [queries, rows] by sorting all of them."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return Found(np.take_along_axis(scores, order, 1), order)


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    """The mean share of expected rows that were found."""
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])
    )


def let_the_clock_tick(folder: Path) -> None:
    """Wait until a file that is written now has another time than any written before."""
    probe = folder / "tick"
    probe.touch()
    before = probe.stat().st_mtime_ns
    while probe.stat().st_mtime_ns == before:
        probe.touch()
    probe.unlink()
