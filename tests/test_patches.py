"""From decoded RGB on, equality with transformers' image processor."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from puma_edge.decoding import decode
from puma_edge.errors import InputError, UsageError
from puma_edge.images import PixelLimits, UInt8, normalize, patchify

DEFAULT = PixelLimits()
QWEN = PixelLimits(56 * 56, 1280 * 28 * 28)
ONE_TOKEN = PixelLimits(28 * 28, 28 * 28)
TINY = PixelLimits(1, 3 * 28 * 28)
LARGE = PixelLimits(700 * 28 * 28, 800 * 28 * 28)
PATCH_16 = PixelLimits(4 * 32 * 32, 300 * 32 * 32, patch_size=16)

# (width, height); 42 and 70 lie half-way between two multiples of 28.
SIZES = [
    (512, 600), (1, 1), (1, 150), (150, 1), (200, 1), (57, 13), (13, 57), (4000, 3000),
    (4000, 40), (40, 4000), (28, 28), (14, 14), (42, 70), (70, 42), (56, 56), (57, 55),
    (1919, 1079), (333, 1001), (2, 400), (476, 476), (487, 483), (28, 5600),
]  # fmt: skip


@pytest.fixture(scope="module")
def rgb(photograph: Path) -> UInt8:
    return decode(photograph)


def pixels_of(size: tuple[int, int], rgb: UInt8) -> UInt8:
    """Return a real photograph of this size: cut out where it is large enough, else scaled."""
    width, height = size
    if height <= rgb.shape[0] and width <= rgb.shape[1]:
        return rgb[60 : 60 + height, 30 : 30 + width] if height < 500 and width < 450 else rgb
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))


def reference(rgb: UInt8, limits: PixelLimits) -> tuple[NDArray[np.float32], list[int]]:
    """Pixel values and grid from transformers."""
    from transformers import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        patch_size=limits.patch_size,
        merge_size=limits.merge_size,
    )
    made = processor(Image.fromarray(rgb), return_tensors="np")
    return made["pixel_values"], made["image_grid_thw"][0].tolist()


def assert_equals_reference(rgb: UInt8, limits: PixelLimits) -> None:
    expected, grid = reference(rgb, limits)
    patches = patchify(rgb, limits)
    assert [1, patches.rows, patches.columns] == grid
    values = normalize(patches.pixels)
    assert values.dtype == np.float32
    assert values.shape == expected.shape
    assert np.abs(values - expected).max() <= 1e-6


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_equals_transformers(size: tuple[int, int], rgb: UInt8) -> None:
    assert_equals_reference(pixels_of(size, rgb), DEFAULT)


@pytest.mark.parametrize("limits", [QWEN, ONE_TOKEN, TINY, LARGE, PATCH_16])
@pytest.mark.parametrize("size", [(512, 600), (57, 13), (900, 31)])
def test_equals_transformers_within_other_limits(
    size: tuple[int, int], limits: PixelLimits, rgb: UInt8
) -> None:
    assert_equals_reference(pixels_of(size, rgb), limits)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_transformers_on_any_part_of_a_photograph(data: st.DataObject, rgb: UInt8) -> None:
    top, left = data.draw(st.integers(0, 590)), data.draw(st.integers(0, 500))
    height, width = data.draw(st.integers(3, 600)), data.draw(st.integers(3, 512))
    assert_equals_reference(rgb[top : top + height, left : left + width], DEFAULT)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.sampled_from([DEFAULT, QWEN, ONE_TOKEN, TINY, LARGE, PATCH_16]),
)
def test_grid_equals_smart_resize(height: int, width: int, limits: PixelLimits) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    factor = limits.patch_size * limits.merge_size
    try:
        sides = smart_resize(height, width, factor, limits.min_pixels, limits.max_pixels)
    except ValueError:
        with pytest.raises(InputError):
            limits.grid(height, width)
    else:
        expected = (sides[0] // limits.patch_size, sides[1] // limits.patch_size)
        assert limits.grid(height, width) == expected


@settings(deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 200) | st.floats(1, 200),
    st.integers(1, 400_000),
    st.integers(0, 400_000) | st.just(0),
)
def test_no_image_has_more_tokens_than_the_most(
    short: int, ratio: float, least: int, more: int
) -> None:
    for limits in (DEFAULT, ONE_TOKEN, TINY, PATCH_16, PixelLimits(least, least + more)):
        for sides in ((short, int(short * ratio)), (int(short * ratio), short)):
            rows, columns = limits.grid(*sides)
            assert rows * columns <= limits.max_tokens * limits.merge_size**2


def test_the_most_tokens_are_reached() -> None:
    # The area's 300; of 64 a strip of 200 to 1 has one row of 113.
    assert DEFAULT.max_tokens == 300
    assert PixelLimits(max_pixels=64 * 28 * 28).max_tokens == 113
    assert PixelLimits(max_pixels=64 * 28 * 28).grid(20, 4000) == (2, 226)


def test_normalized_bytes() -> None:
    # By hand: (0 - mean) / std and (1 - mean) / std, every value twice for the two time slices.
    pixels = np.zeros((2, 588), np.uint8)
    pixels[1] = 255
    values = normalize(pixels).reshape(2, 3, 2, 196)
    np.testing.assert_allclose(values[0, 0], -1.7922626, atol=1e-6)
    np.testing.assert_allclose(values[1, 0], 1.9303361, atol=1e-6)
    np.testing.assert_allclose(values[1, 2], 2.1458969, atol=1e-6)


def test_patches_of_a_token_stand_together() -> None:
    # A picture that needs no resizing, in which every byte is different from its neighbours.
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (4 * 14, 6 * 14, 3), dtype=np.uint8)
    patches = patchify(rgb, DEFAULT)
    assert (patches.rows, patches.columns) == (4, 6)
    assert patches.pixels.dtype == np.uint8
    number = 0
    for block_row in range(2):
        for block_column in range(3):
            for row in (2 * block_row, 2 * block_row + 1):
                for column in (2 * block_column, 2 * block_column + 1):
                    cut = rgb[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
                    expected = cut.transpose(2, 0, 1).ravel()
                    np.testing.assert_array_equal(patches.pixels[number], expected)
                    number += 1
    assert number == len(patches.pixels)


def test_patchify_copies_once_and_leaves_its_input_alone() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (420, 560, 3), dtype=np.uint8)
    before = rgb.copy()
    tracemalloc.start()
    try:
        patches = patchify(rgb, DEFAULT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert patches.pixels.flags.c_contiguous
    assert peak < 1.2 * rgb.nbytes
    np.testing.assert_array_equal(rgb, before)


def test_patchify_of_a_view_equals_that_of_a_copy(rgb: UInt8) -> None:
    view = rgb[::2, ::-3]
    copied = patchify(np.ascontiguousarray(view), DEFAULT)
    np.testing.assert_array_equal(patchify(view, DEFAULT).pixels, copied.pixels)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((28, 28), np.uint8),
        np.zeros((28, 28, 4), np.uint8),
        np.zeros((28, 28, 3), np.float32),
        np.zeros((0, 28, 3), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_refuses_arrays_that_are_no_rgb_image(array: NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"expected \[height, width, 3\] of uint8"):
        patchify(array, DEFAULT)


def test_refuses_extreme_aspect_ratios() -> None:
    assert DEFAULT.grid(1, 200) == (2, 58)
    with pytest.raises(InputError, match=r"201x1 pixels.*at most 200 times.*crop"):
        patchify(np.zeros((1, 201, 3), np.uint8), DEFAULT)


@pytest.mark.parametrize(("least", "most"), [(0, 100), (-1, 100), (101, 100)])
def test_refuses_limits_that_hold_no_image(least: int, most: int) -> None:
    with pytest.raises(UsageError, match="min_pixels <= max_pixels"):
        PixelLimits(least, most)
