"""Batches in few shapes: cut, padded, and refused where they are beyond the profiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.errors import PumaError
from puma_edge.inputs import Encoded
from puma_edge.runtimes.buckets import Room, bucket_of, images_of, pad, split, take
from tests.graphs import batch_of, chosen
from tests.models import item

TEXTS, VISION, MERGED = (Room(4, 64), Room(3, 300)), Room(3, 48), 4
KINDS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 4)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(KINDS)
def test_parts_are_the_items_themselves(kinds: list[tuple[int, int]]) -> None:
    items = chosen(kinds)
    batch = batch_of(items)
    assert images_of(batch, MERGED).tolist() == [len(one.images) for one in items]
    parts = split(batch, TEXTS, VISION, MERGED)
    assert [row for part in parts for row in range(part.start, part.stop)] == [*range(len(items))]
    for part in parts:
        found, wanted = take(batch, part, MERGED), batch_of(items[part])
        for name in ("input_ids", "attention_mask", "position_ids", "image_index", "patches",
                     "patch_positions", "n_patches"):  # fmt: skip
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)
        assert found.image_sizes == wanted.image_sizes
        bucket, number = bucket_of(found, TEXTS, VISION)
        assert bucket.items <= TEXTS[number].count
        assert bucket.tokens <= TEXTS[number].length
        assert bucket.images <= VISION.count
        assert bucket.patches <= VISION.length
        assert bucket.patches % MERGED == 0


@settings(deadline=None, max_examples=60)
@given(KINDS)
def test_padding_keeps_what_is_there(kinds: list[tuple[int, int]]) -> None:
    batch = batch_of(chosen(kinds)[:3])
    batch = take(batch, split(batch, TEXTS, VISION, MERGED)[0], MERGED)
    bucket, _ = bucket_of(batch, TEXTS, VISION)
    padded = pad(batch, bucket, MERGED)
    items, tokens = batch.input_ids.shape
    assert padded.input_ids.shape == padded.image_index.shape == (bucket.items, bucket.tokens)
    assert padded.position_ids.shape == (3, bucket.items, bucket.tokens)
    assert padded.patches.shape[:2] == (bucket.images, bucket.patches)
    np.testing.assert_array_equal(padded.input_ids[:items, :tokens], batch.input_ids)
    assert (padded.attention_mask.sum(1) >= 1).all()
    assert (padded.n_patches >= MERGED).all()
    # Every image token finds the same patch; everything else the row of zeros behind them all.
    for one in (batch, padded):
        each = one.patches.shape[1] // MERGED
        real = one.image_index < len(one.n_patches) * each
        first = one.patches.reshape(-1, MERGED * one.patches.shape[2])[one.image_index[real]]
        if one is batch:
            wanted = first
        else:
            np.testing.assert_array_equal(first, wanted)
            np.testing.assert_array_equal(real[:items, :tokens].sum(), real.sum())


def test_few_shapes_serve_all_lengths() -> None:
    room = (Room(32, 64), Room(8, 853))
    found = {
        bucket_of(batch_of([item(words)] * count), room, VISION)[0]
        for words in range(1, 60)
        for count in (1, 2, 3, 5, 8)
    }
    assert len(found) <= 4 * 4  # lengths 16, 32, 48, 64; 1, 2, 4 or 8 of them
    long = batch_of([item(840)])
    bucket, number = bucket_of(long, room, VISION)
    assert (bucket.items, bucket.tokens, number) == (1, 853, 1)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (item(400), r"400|402 tokens and 0 images .* \(300 tokens, 3 images of 48 patches\)"),
        (item(1, ((8, 8),)), "1 images of up to 64 patches"),
        (item(1, ((2, 2),) * 4), "4 images"),
    ],
)
def test_an_item_beyond_the_profiles_is_refused(entry: Encoded, why: str) -> None:
    with pytest.raises(PumaError, match=why) as caught:
        split(batch_of([item(3), entry, item(4)]), TEXTS, VISION, MERGED)
    assert "--runtime ort" in str(caught.value)
