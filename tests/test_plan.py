"""Windows and batches: every item once, little padding, within the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.images import PixelLimits
from puma_edge.prompts import Modality
from puma_edge.runtimes import plan
from puma_edge.runtimes.documents import Document
from puma_edge.runtimes.plan import Budget, Cost, batches, windows


def document(number: int, modality: Modality) -> Document:
    name = f"{number:032x}"
    return Document(name, name, name, modality, f"{(number * 2654435761) % 2**32:08x}{number}", 1)


def test_windows_hold_every_content_once() -> None:
    documents = [document(n % 4000, Modality.TEXT) for n in range(5000)]
    documents += [document(n, Modality.IMAGE) for n in range(5000, 5500)]
    found = windows(documents, PixelLimits())
    flat = [item for window in found for item in window]
    assert flat == sorted(flat)
    assert len(flat) == 4500
    for window in found:
        assert len({documents[item].modality for item in window}) == 1
        assert len(window) <= plan.window_size(documents[window[0]].modality, PixelLimits())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 500), st.sampled_from([0, 4, 16, 1200])), max_size=80),
)
def test_batches_hold_every_item_once_within_the_budget(sizes: list[tuple[int, int]]) -> None:
    costs = [Cost(*size) for size in sizes]
    budget = Budget()
    found = batches(costs, budget)
    assert sorted(item for batch in found for item in batch) == list(range(len(costs)))
    for batch in found:
        tokens = max(costs[item].tokens for item in batch)
        patches = max(costs[item].patches for item in batch)
        assert len(batch) == 1 or plan._fits(len(batch), tokens, patches, budget)


@pytest.mark.parametrize(("count", "most"), [(plan.TEXT_WINDOW, 1.05), (300, 1.1), (96, 1.2)])
def test_padding_stays_under_five_percent(count: int, most: float) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 0.8, count).clip(20, 480).astype(int)
    found = batches([Cost(int(length)) for length in lengths], Budget())
    padded = sum(len(batch) * max(lengths[item] for item in batch) for batch in found)
    assert padded < most * lengths.sum()


def test_pictures_of_two_sizes_share_no_batch() -> None:
    costs = [Cost(300, 1200 - 4 * (n % 2)) for n in range(20)] + [Cost(121, 484)] * 20
    assert all(
        len({costs[item].patches > 500 for item in batch}) == 1
        for batch in batches(costs, Budget())
    )
