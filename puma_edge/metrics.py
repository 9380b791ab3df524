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
    return recall_of(top_k(scores, k), relevant)


def recall_of(top: NDArray[np.int64], relevant: Sequence[Collection[int]]) -> NDArray[np.float32]:
    """`recall_at_k` of hits [queries, k] that were found already."""
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
    return ndcg_of(top_k(scores, k), relevant, k)


def ndcg_of(
    top: NDArray[np.int64], relevant: Sequence[Collection[int]], k: int
) -> NDArray[np.float32]:
    """`ndcg_at_k` of hits [queries, min(k, candidates)] that were found already."""
    gains = 1 / np.log2(np.arange(2, k + 2))
    rows = []
    for row, right in zip(top, relevant, strict=True):
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
    groups: Sequence[NDArray[np.float32]],
    weights: Sequence[float] | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float]:
    """A 95% interval of a mean of the groups' means, by drawing each group's queries anew.

    Args:
        groups: values per query, one array per task and data set.
        weights: of the groups, with 1 as their sum; all alike by default.
        seed: of the draws.
        draws: how many.

    Returns:
        the 2.5th and the 97.5th percentile (Efron's percentile interval).
    """
    random = np.random.default_rng(seed)
    means = np.zeros(draws)
    for values, weight in zip(groups, weights or [1 / len(groups)] * len(groups), strict=True):
        chosen = random.integers(0, len(values), (draws, len(values)))
        means += weight * values[chosen].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices [queries, min(k, candidates)] of the largest scores, best first, ties by index."""
    if not 0 < k < scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.array([_first(-row, k) for row in scores], np.int64).reshape(len(scores), k)


def _first(row: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k smallest values' places, the smallest first; nothing but they is ever sorted."""
    last = np.partition(row, k - 1)[k - 1]
    if np.isnan(last):
        return np.argsort(row, kind="stable")[:k]
    better = np.flatnonzero(row < last)
    chosen = np.sort(np.concatenate([better, np.flatnonzero(row == last)[: k - len(better)]]))
    return chosen[np.argsort(row[chosen], kind="stable")]
