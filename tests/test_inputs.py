"""Items become arrays: images are cut, their tokens found, and batches padded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from puma_edge.errors import InputError
from puma_edge.images import PixelLimits, patchify
from puma_edge.inputs import Batch, InputSpec, Item, Positions, collate, patch_positions
from puma_edge.prompts import Modality
from tests.items import SIZES, Sizes, item
from tests.pictures import colours


def test_encode_cuts_the_images_and_finds_their_tokens(spec: InputSpec) -> None:
    images = (colours(100, 300), colours(31, 17))
    encoded = spec.encode(Item("a fox", images, "Find it."))
    assert [(image.rows, image.columns) for image in encoded.images] == [
        spec.limits.grid(100, 300),
        spec.limits.grid(31, 17),
    ]
    is_image = encoded.input_ids == spec.tokenizer.image_pad_id
    np.testing.assert_array_equal(encoded.image_places, np.flatnonzero(is_image))
    assert is_image.sum() == sum(len(image.pixels) for image in encoded.images) // 4
    assert encoded.length == len(encoded.input_ids) == encoded.positions.shape[1]
    cut = tuple(patchify(image, spec.limits) for image in images)
    again = spec.encode_patches("Find it.", "a fox", cut)
    np.testing.assert_array_equal(again.input_ids, encoded.input_ids)


def test_image_pads_in_a_text_are_no_images(spec: InputSpec) -> None:
    encoded = spec.encode(Item("<|image_pad|>" * 9, (), "<|image_pad|>"))
    assert encoded.image_places.size == 0
    np.testing.assert_array_equal(encoded.positions[1], np.arange(encoded.length))


@pytest.mark.parametrize("text", [None, ""])
def test_an_empty_item_is_refused(text: str | None, spec: InputSpec) -> None:
    with pytest.raises(InputError, match="needs text or an image, and has neither"):
        spec.encode(Item(text, instruction="Find it."))


def test_modality_of_an_item() -> None:
    image = colours(28, 28)
    assert Item("a").modality is Modality.TEXT
    assert Item("", (image,)).modality is Modality.IMAGE
    assert Item("a", (image,)).modality is Modality.IMAGE_TEXT


def gathered(batch: Batch) -> NDArray[np.int64]:
    """Put at each place what a text graph would: [B, S, 2], image and token; (-1, -1) for text."""
    count, most = batch.patches.shape[:2]
    table = np.stack(np.divmod(np.arange(count * (most // 4)), max(1, most // 4)), axis=1)
    return np.concatenate([table, [[-1, -1]]])[batch.image_index]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(items=st.lists(SIZES, min_size=1, max_size=4))
@example(items=[[(4, 6), (2, 2)], [], [(2, 2)], [(8, 8)]])
def test_every_image_token_gets_its_own_row(items: list[Sizes], spec: InputSpec) -> None:
    batch = spec.collate([item(spec, sizes, seed=n) for n, sizes in enumerate(items)])
    expected = np.full((*batch.input_ids.shape, 2), -1)
    number = 0
    for row, sizes in enumerate(items):
        places = iter(np.flatnonzero(batch.input_ids[row] == spec.tokenizer.image_pad_id))
        for rows, columns in sizes:
            for token in range(rows * columns // 4):
                expected[row, next(places)] = (number, token)
            number += 1
        assert next(places, None) is None
    np.testing.assert_array_equal(gathered(batch), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(items=st.lists(SIZES, min_size=1, max_size=4), texts=st.integers(1, 60))
def test_a_batch_of_one_equals_its_row_of_a_mixed_batch(
    items: list[Sizes], texts: int, spec: InputSpec
) -> None:
    made = [
        item(spec, sizes, "fox " * (texts if number % 2 else 1), seed=number)
        for number, sizes in enumerate(items)
    ]
    mixed = spec.collate(made)
    assert len(mixed) == len(made)
    first = 0
    for row, entry in enumerate(made):
        alone = spec.collate([entry])
        length, images = entry.length, len(entry.images)
        assert alone.input_ids.shape == (1, length)
        np.testing.assert_array_equal(mixed.input_ids[row, :length], alone.input_ids[0])
        np.testing.assert_array_equal(mixed.position_ids[:, row, :length], alone.position_ids[:, 0])
        assert alone.attention_mask.all()
        assert mixed.attention_mask[row].tolist() == [1] * length + [0] * (
            len(mixed.input_ids[row]) - length
        )
        assert (mixed.input_ids[row, length:] == spec.tokenizer.pad_id).all()
        assert (gathered(mixed)[row, length:] == -1).all()
        tokens = gathered(mixed)[row, :length]
        np.testing.assert_array_equal(
            np.where(tokens[:, :1] >= 0, tokens - [first, 0], tokens), gathered(alone)[0]
        )
        mine = slice(first, first + images)
        most = alone.patches.shape[1]
        np.testing.assert_array_equal(mixed.patches[mine, :most], alone.patches)
        np.testing.assert_array_equal(mixed.patch_positions[mine, :most], alone.patch_positions)
        np.testing.assert_array_equal(mixed.n_patches[mine], alone.n_patches)
        assert mixed.image_sizes[mine] == alone.image_sizes
        first += images
    assert first == len(mixed.patches)


def test_shapes_types_and_padding(spec: InputSpec) -> None:
    made = [item(spec, [(4, 6), (2, 2)]), item(spec, []), item(spec, [(2, 8)], None, seed=2)]
    batch = spec.collate(made)
    longest = max(entry.length for entry in made)
    assert batch.input_ids.shape == batch.attention_mask.shape == (3, longest)
    assert batch.position_ids.shape == (3, 3, longest)
    assert batch.image_index.shape == (3, longest)
    assert batch.patches.shape == (3, 24, 588)
    assert batch.patches.dtype == np.uint8
    assert batch.patch_positions.shape == (3, 24, 2)
    assert batch.n_patches.tolist() == [24, 4, 16]
    assert batch.image_sizes == ((4, 6), (2, 2), (2, 8))
    for name in ("input_ids", "attention_mask", "position_ids", "image_index", "n_patches"):
        assert getattr(batch, name).dtype == np.int64
    assert batch.patch_positions.dtype == np.int64
    images = [image for entry in made for image in entry.images]
    for number, image in enumerate(images):
        count = len(image.pixels)
        np.testing.assert_array_equal(batch.patches[number, :count], image.pixels)
        expected = patch_positions(image.rows, image.columns, 2)
        np.testing.assert_array_equal(batch.patch_positions[number, :count], expected)
        assert not batch.patches[number, count:].any()
        assert not batch.patch_positions[number, count:].any()
    # One past the 3 * 24 / 4 rows stands for "no image here".
    assert batch.image_index.max() == 18
    assert (batch.image_index[1] == 18).all()
    joined = np.concatenate([image.pixels for image in images])
    np.testing.assert_array_equal(batch.real_patches(), joined)


def test_a_batch_of_text_has_no_images(spec: InputSpec) -> None:
    batch = spec.collate([item(spec, []), item(spec, [], "a quick brown fox")])
    assert batch.patches.shape == (0, 0, 588)
    assert batch.patch_positions.shape == (0, 0, 2)
    assert batch.n_patches.shape == (0,)
    assert batch.image_sizes == ()
    assert not batch.image_index.any()
    assert batch.real_patches().shape == (0, 588)


def test_other_patch_sizes(spec: InputSpec) -> None:
    limits = PixelLimits(1024, 65536, patch_size=16, merge_size=2)
    made = InputSpec(spec.tokenizer, limits, Positions.MROPE).encode(Item(None, (colours(64, 96),)))
    batch = collate([made], 0, limits)
    assert batch.patches.shape == (1, 24, 768)
    assert len(made.image_places) == 6
