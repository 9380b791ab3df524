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


def overlap_at_k(
    first: NDArray[np.float32], second: NDArray[np.float32], k: int
) -> NDArray[np.float32]:
    """Share of the first k hits that two models' scores have in common, per query.

    Args:
        first: [queries, candidates], larger is better; ties go to the lower index.
        second: the same of the other model.
        k: how many are looked at; all, where there are fewer candidates.

    Returns:
        [queries], 0 to 1.
    """
    return _shared(first, second, k)[:, -1]


def rank_agreement(
    first: NDArray[np.float32], second: NDArray[np.float32], k: int
) -> NDArray[np.float32]:
    """How alike two models order their first k hits, per query: the mean overlap at 1, 2, .. k.

    A change at the top weighs most (average overlap; Webber, Moffat and Zobel, 2010). Arguments as
    in `overlap_at_k`; [queries], 0 to 1.
    """
    return np.asarray(_shared(first, second, k).mean(axis=1), np.float32)


def _shared(first: NDArray[np.float32], second: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Share [queries, k] of the first 1, 2, .. k hits that both have."""
    mine, theirs = top_k(first, k), top_k(second, k)
    queries, k = mine.shape
    # A candidate that both have counts from the deeper of its two places on.
    row, place, other = np.nonzero(mine[:, :, None] == theirs[:, None, :])
    counts = np.zeros((queries, k), np.float32)
    np.add.at(counts, (row, np.maximum(place, other)), 1)
    return np.asarray(counts.cumsum(axis=1) / np.arange(1, k + 1), np.float32)


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
