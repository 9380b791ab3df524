"""Recall against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from puma_edge.metrics import bootstrap, ndcg_at_k, recall_at_k, top_k


def test_a_hit_is_any_relevant_candidate_among_the_first_k() -> None:
    scores = np.asarray([[0.9, 0.5, 0.1], [0.1, 0.2, 0.3]], np.float32)
    assert recall_at_k(scores, [[1, 2], [0]], 2).tolist() == [1.0, 0.0]
    assert recall_at_k(scores, [[2], [0]], 3).tolist() == [1.0, 1.0]


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.integers(-4, 4).map(float),
    ),
    st.integers(1, 12),
)
def test_top_k_is_a_stable_sort(scores: np.ndarray, k: int) -> None:  # type: ignore[type-arg]
    for row, found in zip(scores, top_k(scores, k), strict=True):
        expected = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
        assert found.tolist() == expected


def test_ndcg_is_the_value_derived_by_hand() -> None:
    scores = np.asarray([[0.9, 0.8, 0.7, 0.6]] * 4, np.float32)
    relevant = [[0, 2], [3], [1], []]
    # Ranks 1 and 3 of two: (1 + 1/2) / (1 + 1/log2(3)); beyond k; rank 2 of one; nothing to find.
    best_of_two = 1 + 1 / np.log2(3)
    expected = [1.5 / best_of_two, 0.0, 1 / np.log2(3), 0.0]
    assert np.allclose(ndcg_at_k(scores, relevant, 3), expected)


@given(st.permutations(range(7)), st.sets(st.integers(0, 6), min_size=1), st.integers(1, 7))
def test_ndcg_is_one_exactly_for_the_best_order(
    order: list[int], relevant: set[int], k: int
) -> None:
    scores = np.zeros((1, 7), np.float32)
    scores[0, order] = np.arange(7, 0, -1)
    found = float(ndcg_at_k(scores, [relevant], k)[0])
    first = order[: min(k, len(relevant))]
    assert 0 <= found <= 1 + 1e-6
    assert (abs(found - 1) < 1e-6) == (set(first) <= relevant)


def test_the_interval_holds_the_mean_and_shrinks_with_more_queries() -> None:
    draw = np.random.default_rng(0)
    few, many = (draw.integers(0, 2, size).astype(np.float32) for size in (50, 5000))
    for values in (few, many):
        low, high = bootstrap([values, 1 - values])
        assert low <= 0.5 <= high
    widths = [np.subtract(*bootstrap([values])[::-1]) for values in (few, many)]
    # A mean's spread falls with the square root of the count: ten times here.
    assert 7 < widths[0] / widths[1] < 14
    assert bootstrap([np.ones(9, np.float32)]) == (1.0, 1.0)


def test_groups_weigh_what_they_do_in_the_mean() -> None:
    draw = np.random.default_rng(0)
    groups = [(draw.random(400) < share).astype(np.float32) for share in (0.2, 0.3, 0.4, 0.9)]
    # Three data sets of one task, one of another.
    weights = [1 / 6, 1 / 6, 1 / 6, 1 / 2]
    low, high = bootstrap(groups, weights)
    expected = sum(w * float(one.mean()) for w, one in zip(weights, groups, strict=True))
    assert low < expected < high
    low, high = bootstrap(groups)
    assert high < expected
    assert bootstrap(groups) == bootstrap(groups, [0.25] * 4)


@given(st.integers(1, 5), st.lists(st.sampled_from([np.nan, 0.0, 1.0]), min_size=1, max_size=8))
def test_what_is_no_number_comes_last(k: int, values: list[float]) -> None:
    found = top_k(np.array([values], np.float32), k)[0].tolist()
    expected = sorted(range(len(values)), key=lambda n: (np.isnan(values[n]), -np.nan_to_num(
        values[n]), n))  # fmt: skip
    assert found == expected[:k]
