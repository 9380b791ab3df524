"""What the families' graphs are fed: transformers' own positions, pixels, windows and grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from puma_edge import feeds
from puma_edge.backbones import Family, backbone_of, tower_of
from puma_edge.decoding import decode
from puma_edge.images import PixelLimits, normalize, patchify
from puma_edge.inputs import Batch, Encoded, collate, rope_positions
from puma_edge.spellings import IS_OLDER
from puma_edge.tower import Tower
from tests.families import tiny
from tests.items import SIZE
from tests.models import PAD, image

NEWER = pytest.mark.skipif(IS_OLDER, reason="the reference came with transformers 5")


@NEWER
@pytest.mark.parametrize("family", list(Family))
def test_positions_equal_transformers(family: Family) -> None:
    model = tiny(family)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        sizes=st.lists(SIZE, max_size=4), gaps=st.lists(st.integers(1, 9), min_size=5, max_size=5)
    )
    def check(sizes: list[tuple[int, int]], gaps: list[int]) -> None:
        marks: list[int] = [0] * gaps[0]
        for (rows, columns), gap in zip(sizes, gaps[1:], strict=False):
            marks += [1] * (rows * columns // 4) + [0] * gap
        is_image = np.asarray(marks, bool)
        ids = torch.full((1, len(marks)), 5)
        expected, _ = model.get_rope_index(
            ids,
            mm_token_type_ids=torch.from_numpy(is_image)[None].int(),
            image_grid_thw=torch.tensor([[1, *size] for size in sizes]) if sizes else None,
            attention_mask=torch.ones_like(ids),
        )
        np.testing.assert_array_equal(rope_positions(is_image, sizes, 2), expected[:, 0].numpy())

    check()


@NEWER
@pytest.mark.parametrize("size", [(512, 600), (1, 1), (150, 2), (2000, 1500), (48, 80), (64, 6400)])
def test_qwen3_pixels_equal_transformers(size: tuple[int, int], photograph: Path) -> None:
    from transformers import Qwen2VLImageProcessorPil

    limits, tower = backbone_of(Family.QWEN3_VL).limits, tower_of(tiny(Family.QWEN3_VL).config)
    # What the published models' preprocessor_config.json says, but for PUMA's limit of tokens.
    assert limits == PixelLimits(65536, 300 * 32 * 32, patch_size=16, merge_size=2)
    rgb = np.asarray(Image.fromarray(decode(photograph)).resize(size))
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    expected = processor(Image.fromarray(rgb), return_tensors="np")
    found = patchify(rgb, limits)
    assert [1, found.rows, found.columns] == expected["image_grid_thw"][0].tolist()
    values = normalize(found.pixels, tower.mean, tower.std)
    assert np.abs(values - expected["pixel_values"]).max() <= 1e-6


def images_of(sizes: list[tuple[int, int]], tower: Tower) -> Batch:
    """A batch of one item that has images of these sizes."""
    cut = tuple(image(*size, seed=number) for number, size in enumerate(sizes))
    places = np.arange(sum(len(one.pixels) for one in cut) // 4)
    ids = np.full(len(places), 7)
    item = Encoded(ids, np.zeros((3, len(ids)), np.int64), cut, places)
    return collate([item], PAD, PixelLimits(), tower)


@NEWER
@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(SIZE, min_size=1, max_size=4), edge=st.sampled_from([4, 8]))
def test_windows_equal_transformers(sizes: list[tuple[int, int]], edge: int) -> None:
    from transformers.vision_utils import get_vision_window_index

    grid = torch.tensor([(1, *size) for size in sizes])
    order, ends = get_vision_window_index(grid, 2, edge * 14, 14)
    order = np.stack([4 * order.numpy() + place for place in range(4)], axis=1).ravel()
    expected = [set(part) for part in np.split(order, ends.tolist()[1:-1])]

    batch = images_of(sizes, Tower(window=edge))
    made = feeds.window_feeds(batch)
    # The number of each patch among the real ones of all images, which transformers counts.
    real = np.arange(batch.patches.shape[1]) < batch.n_patches[:, None]
    number = (np.cumsum(real) - 1).reshape(-1)
    rows = zip(made["window_patches"], made["window_lengths"], strict=True)
    assert [set(number[row[:taken]]) for row, taken in rows] == expected
    back = made["window_patches"].ravel()[made["patch_places"]]
    np.testing.assert_array_equal(back[real], np.flatnonzero(real))


@NEWER
@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(SIZE, min_size=1, max_size=4), side=st.sampled_from([6, 48]))
def test_grid_points_equal_transformers(sizes: list[tuple[int, int]], side: int) -> None:
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    grid = torch.tensor([(1, *size) for size in sizes])
    index, weights = get_vision_interpolation_indices_and_weights(
        grid, side, align_corners=True, spatial_merge_size=2
    )
    batch = images_of(sizes, Tower(grid=side))
    made = feeds.grid_feeds(batch)
    real = np.arange(batch.patches.shape[1]) < batch.n_patches[:, None]
    np.testing.assert_array_equal(made["grid_index"][real], index.numpy())
    np.testing.assert_array_equal(made["grid_weights"][real], weights.numpy())
    assert not made["grid_weights"][~real].any()


@pytest.mark.parametrize("family", list(Family))
def test_every_input_has_the_function_that_makes_it(family: Family) -> None:
    tower = tower_of(tiny(family).config)
    batch = images_of([(4, 6), (10, 2)], tower)
    named = feeds.makers(tower)
    assert feeds.vision_feeds(batch).keys() == named["vision"].keys()
    for name, function in named["vision"].items():
        assert name in getattr(feeds, function)(batch)
    assert feeds.text_feeds(batch, np.zeros((0, 1), np.float32)).keys() == named["text"].keys()
