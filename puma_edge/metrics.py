"""Retrieval metrics."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray


def recall_at_k(
    scores: NDArray[np.float32], relevant: Sequence[Collection[int]], k: int
) -> NDArray[np.float32]:
    """Whether any relevant candidate is among the first k, per query (M-BEIR's recall).

    Args:
        scores: [queries, candidates], larger is better; ties go to the lower index.
        relevant: for each query the indices of its right candidates.
        k: how many are looked at.

    Returns:
        [queries], 0 or 1.
    """
    top = top_k(scores, k)
    return np.asarray(
        [bool(set(row.tolist()) & set(right)) for row, right in zip(top, relevant, strict=True)],
        np.float32,
    )


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices [queries, min(k, candidates)] of the largest scores, best first, ties by index."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
