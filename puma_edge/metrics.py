"""Retrieval metrics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Pool(str, Enum):
    """Among which candidates an answer is looked for."""

    LOCAL = "local"  # those of the query's own data set and task
    GLOBAL = "global"  # those of all data sets and tasks


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


def ndcg_at_k(
    scores: NDArray[np.float32], relevant: Sequence[Collection[int]], k: int
) -> NDArray[np.float32]:
    """Normalised discounted cumulative gain of the first k, per query; relevance is 0 or 1.

    Sum of 1 / log2(rank + 1) over the relevant among the first k, over what the best order gives
    (Järvelin and Kekäläinen, 2002). Arguments as in `recall_at_k`; [queries], 0 to 1.
    """
    gains = 1 / np.log2(np.arange(2, k + 2))
    rows = []
    for row, right in zip(top_k(scores, k), relevant, strict=True):
        found = gains[: len(row)][np.isin(row, list(right))].sum()
        best = gains[: min(k, len(set(right)))].sum()
        rows.append(found / best if best else 0.0)
    return np.asarray(rows, np.float32)


def bootstrap(
    groups: Sequence[NDArray[np.float32]], seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """A 95% interval of the mean of the groups' means, by drawing each group's queries anew.

    Args:
        groups: values per query, one array per task.
        seed: of the draws.
        draws: how many.

    Returns:
        the 2.5th and the 97.5th percentile (Efron's percentile interval).
    """
    random = np.random.default_rng(seed)
    means = np.zeros(draws)
    for values in groups:
        chosen = random.integers(0, len(values), (draws, len(values)))
        means += values[chosen].mean(axis=1) / len(groups)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices [queries, min(k, candidates)] of the largest scores, best first, ties by index."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
