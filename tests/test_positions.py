"""Positions of tokens and of patches against transformers' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from puma_edge.images import PixelLimits, patchify
from puma_edge.inputs import InputSpec, Positions, patch_positions, rope_positions
from puma_edge.spellings import rope_settings
from tests.items import SIZES, Sizes, item

if TYPE_CHECKING:
    from transformers import Qwen2VLModel


@pytest.fixture(scope="module")
def model(spec: InputSpec) -> Qwen2VLModel:
    from transformers import Qwen2VLConfig, Qwen2VLModel

    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 600,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            **rope_settings(10000.0, [2, 3, 3]),
        },
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32},
        image_token_id=spec.tokenizer.image_pad_id,
    )
    return Qwen2VLModel(config).eval()


def model_positions(
    model: Qwen2VLModel,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
    is_image: NDArray[np.bool_],
    sizes: Sizes,
) -> NDArray[np.int64]:
    """[3, B, S] from transformers."""
    import torch

    grid = torch.tensor([[1, *size] for size in sizes]) if sizes else None
    positions, _ = model.get_rope_index(
        torch.from_numpy(ids),
        mm_token_type_ids=torch.from_numpy(is_image).int(),
        image_grid_thw=grid,
        attention_mask=torch.from_numpy(mask),
    )
    return positions.numpy()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(sizes=SIZES, gaps=st.lists(st.integers(1, 9), min_size=5, max_size=5), head=st.booleans())
@example(sizes=[], gaps=[7, 1, 1, 1, 1], head=True)
@example(sizes=[(4, 6)], gaps=[1, 1, 1, 1, 1], head=False)
def test_rope_positions_equal_transformers(
    sizes: Sizes, gaps: list[int], head: bool, model: Qwen2VLModel
) -> None:
    # Text of any length around the images; with `head` False the first image opens the sequence.
    marks: list[int] = [0] * gaps[0] if head or not sizes else []
    for (rows, columns), gap in zip(sizes, gaps[1:], strict=False):
        marks += [1] * (rows * columns // 4) + [0] * gap
    is_image = np.asarray(marks, bool)
    ids = np.where(is_image, model.config.image_token_id, 5)[None]
    expected = model_positions(model, ids, np.ones_like(ids), is_image[None], sizes)[:, 0]
    got = rope_positions(is_image, sizes, 2)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(items=st.lists(SIZES, min_size=1, max_size=4))
@example(items=[[], []])
@example(items=[[(2, 2), (6, 4)], [], [(24, 2)]])
def test_batch_positions_equal_transformers(
    items: list[Sizes], model: Qwen2VLModel, spec: InputSpec
) -> None:
    made = [item(spec, sizes, seed=number) for number, sizes in enumerate(items)]
    batch = spec.collate(made)
    is_image = batch.input_ids == spec.tokenizer.image_pad_id
    every = [size for sizes in items for size in sizes]
    expected = model_positions(model, batch.input_ids, batch.attention_mask, is_image, every)
    np.testing.assert_array_equal(batch.position_ids, expected)


def test_rope_positions_by_hand() -> None:
    # t t [2 x 3 tokens] t: the image shares time 2, the text after it goes on from 2 + 3.
    is_image = np.asarray([0, 0, 1, 1, 1, 1, 1, 1, 0], bool)
    assert rope_positions(is_image, [(4, 6)], 2).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]


def test_plain_positions_count_on_through_images(spec: InputSpec) -> None:
    plain = InputSpec(spec.tokenizer, spec.limits, Positions.PLAIN)
    for sizes in ([], [(4, 6)], [(2, 2), (8, 4)]):
        encoded = item(plain, sizes)
        expected = np.arange(encoded.length)
        assert encoded.positions.dtype == np.int64
        np.testing.assert_array_equal(encoded.positions, [expected] * 3)
        np.testing.assert_array_equal(encoded.input_ids, item(spec, sizes).input_ids)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=SIZES.filter(bool))
def test_patch_positions_equal_the_models_own(sizes: Sizes) -> None:
    import torch
    from transformers.vision_utils import get_vision_position_ids

    grid = torch.tensor([[1, *size] for size in sizes])
    got = np.concatenate([patch_positions(*size, 2) for size in sizes])
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, get_vision_position_ids(grid, 2).numpy())


def test_patch_positions_name_the_place_a_patch_was_cut_from() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    patches = patchify(rgb, PixelLimits())
    places = patch_positions(patches.rows, patches.columns, 2)
    for patch, (row, column) in zip(patches.pixels, places, strict=True):
        cut = rgb[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        np.testing.assert_array_equal(patch, cut.transpose(2, 0, 1).ravel())
