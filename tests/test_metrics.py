"""Recall against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from puma_edge.metrics import recall_at_k, top_k


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
