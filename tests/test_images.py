"""Decoding on its own; from decoded RGB on, equality with transformers' image processor."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from puma_edge import images
from puma_edge.errors import InputError, UsageError
from puma_edge.images import PixelLimits, UInt8, decode, normalize, patchify

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


# --- decoding -----------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(height: int = 20, width: int = 31, channels: int = 3) -> UInt8:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(channels).integers(0, 256, shape, dtype=np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: NDArray[Any], colour: int, depth: int, extra: bytes = b"") -> bytes:
    """Write a PNG of kinds that Pillow does not write."""
    height, width = values.shape[:2]
    kind = ">u2" if depth == 16 else "u1"
    rows = b"".join(b"\0" + row.astype(kind).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def assert_close(got: UInt8, expected: NDArray[Any], within: float = 1.0) -> None:
    assert got.dtype == np.uint8
    assert got.shape == (*expected.shape[:2], 3)
    if expected.ndim == 2:
        expected = expected[..., None]
    assert np.abs(got.astype(np.float64) - expected).max() <= within


def over_white(values: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float64]:
    share = alpha.astype(np.float64)[..., None] / 255
    return values.reshape(*alpha.shape, -1) * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_rgb_is_kept(kind: str) -> None:
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(colours()), kind)), colours())


def test_reads_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(colours()), "PNG"))
    np.testing.assert_array_equal(decode(path), colours())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_grey(kind: str) -> None:
    grey = colours(channels=1)
    assert_close(decode(encoded(Image.fromarray(grey), kind)), grey, within=0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparency_lies_over_white(kind: str) -> None:
    four, two = colours(channels=4), colours(channels=2)
    rgba = decode(encoded(Image.fromarray(four), kind))
    assert_close(rgba, over_white(four[..., :3], four[..., 3]))
    grey_alpha = decode(encoded(Image.fromarray(two), kind))
    assert_close(grey_alpha, over_white(two[..., :1], two[..., 1]))


def test_what_is_wholly_transparent_is_white_whatever_colour_is_under_it() -> None:
    four = colours(channels=4)
    four[..., 3] = 0
    assert (decode(encoded(Image.fromarray(four), "PNG")) == 255).all()


def test_palette_with_transparency() -> None:
    numbers = np.arange(20 * 31, dtype=np.uint8).reshape(20, 31) % 4
    image = Image.fromarray(numbers).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    table = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint8)
    image.putpalette(table.tobytes())
    alphas = np.array([255, 0, 128, 255])
    expected = over_white(table[numbers], alphas[numbers])
    assert_close(decode(encoded(image, "PNG", transparency=bytes([255, 0, 128]))), expected)
    np.testing.assert_array_equal(decode(encoded(image, "PNG")), table[numbers])


@pytest.mark.parametrize("colour", [0, 2])
def test_one_transparent_colour(colour: int) -> None:
    values = colours(channels=1 if colour == 0 else 3)
    values[3:6] = 77
    clear = chunk(b"tRNS", struct.pack(">H", 77) * (1 if colour == 0 else 3))
    expected = values.copy().astype(float)
    every = values[..., None] == 77 if colour == 0 else (values == 77).all(-1, keepdims=True)
    expected = np.where(every, 255, values if colour else values[..., None])
    assert_close(decode(png(values, colour, 8, clear)), expected, within=0)


def test_one_bit() -> None:
    bits = colours(channels=1) > 127
    got = decode(encoded(Image.fromarray(bits), "PNG"))
    assert_close(got, bits * 255, within=0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled(kind: str) -> None:
    values = np.linspace(0, 65535, 20 * 31).astype(np.uint16).reshape(20, 31)
    assert_close(decode(encoded(Image.fromarray(values), kind)), values / 257)


def test_dark_sixteen_bit_grey_stays_dark() -> None:
    # The scale is that of the format, not of what happens to be in this picture.
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    assert decode(encoded(Image.fromarray(values), "PNG")).max() == 2


def test_big_endian_sixteen_bit_tiff() -> None:
    values = np.linspace(0, 65535, 620).astype(">u2").reshape(20, 31)
    data = encoded(Image.frombytes("I;16B", (31, 20), values.tobytes()), "TIFF")
    assert_close(decode(data), values.astype(float) / 257)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_and_alpha(colour: int, channels: int) -> None:
    values = np.random.default_rng(colour).integers(0, 65536, (20, 31, channels))
    expected = values / 257
    if colour != 2:
        expected = over_white(expected[..., :-1], expected[..., -1])
    # Pillow drops the low bytes: of colour, at most 1 of 255, and of alpha, as much again.
    assert_close(decode(png(values, colour, 16)), expected, within=1 if colour == 2 else 2)


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    values = np.full((8, 9), 20_000)
    values[2:4] = 1000
    got = decode(png(values, 0, 16, chunk(b"tRNS", struct.pack(">H", 1000))))
    assert (got[2:4] == 255).all()
    assert (got[4:] == 78).all()


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats(white: float) -> None:
    values = np.linspace(0, white, 620, dtype=np.float32).reshape(20, 31)
    assert_close(decode(encoded(Image.fromarray(values), "TIFF")), values * (255 / white))


def test_floats_that_are_no_numbers_are_black() -> None:
    values = np.full((4, 5), 0.5, np.float32)
    values[0] = [np.nan, np.inf, -np.inf, -1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = decode(encoded(Image.fromarray(values), "TIFF"))
    assert got[0, :, 0].tolist() == [0, 0, 0, 0, 255]
    assert (got[1:] == 128).all()


def test_thirty_two_bit_integers() -> None:
    values = np.linspace(0, 2**31 - 1, 620).astype(np.int32).reshape(20, 31)
    expected = values * (255 / (2**31 - 1))
    assert_close(decode(encoded(Image.fromarray(values), "TIFF")), expected)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (10, 200, 30, 40), (0, 0, 0, 255)])
def test_cmyk(kind: str, ink: tuple[int, int, int, int]) -> None:
    black = ink[3] / 255
    expected = np.broadcast_to([(255 - part) * (1 - black) for part in ink[:3]], (16, 24, 3))
    got = decode(encoded(Image.new("CMYK", (24, 16), ink), kind))
    assert_close(got, expected, within=4 if kind == "JPEG" else 1)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_in_tiff(mode: str) -> None:
    # (200, 100, 50) under the D50 of ICC profiles is L 53.9, a 36.9, b 46.9; a and b are + 128.
    lab, rgb = (137, 165, 175), (200, 100, 50)
    image = Image.new("LAB", (9, 8), lab) if mode == "LAB" else Image.new("RGB", (9, 8), rgb)
    image = image if mode == "LAB" else image.convert(mode)
    assert_close(decode(encoded(image, "TIFF")), np.broadcast_to(rgb, (8, 9, 3)), 4)


# How each orientation's stored picture lies when it is upright, in numpy instead of Pillow.
UPRIGHT: dict[int, Callable[[UInt8], UInt8]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(kind: str, orientation: int) -> None:
    stored = np.full((16, 32, 3), 255, np.uint8)
    stored[:8, :16] = [255, 0, 0]
    stored[8:, :8] = [0, 0, 255]
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    if kind == "JPEG":
        options = {"quality": 100, "subsampling": 0}
    got = decode(encoded(Image.fromarray(stored), kind, exif=exif, **options))
    assert_close(got, UPRIGHT[orientation](stored), within=4 if kind == "JPEG" else 0)


def test_sixteen_bits_are_turned_upright_too() -> None:
    values = np.linspace(0, 65535, 620).astype(np.uint16).reshape(20, 31)
    exif = Image.Exif()
    exif[274] = 6
    assert_close(
        decode(encoded(Image.fromarray(values), "PNG", exif=exif)), np.rot90(values, -1) / 257
    )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    got = decode(encoded(Image.fromarray(colours()), "PNG", exif=exif))
    np.testing.assert_array_equal(got, colours())


def test_exif_that_cannot_be_parsed_does_not_cost_the_picture() -> None:
    got = decode(png(colours(), 2, 8, chunk(b"eXIf", b"this is no EXIF block")))
    np.testing.assert_array_equal(got, colours())


def frames() -> list[Image.Image]:
    return [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(kind: str) -> None:
    first, *rest = frames()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=rest, **options)
    np.testing.assert_array_equal(decode(data), np.asarray(first))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    data = encoded(Image.fromarray(colours()), "TIFF", compression=compression)
    np.testing.assert_array_equal(decode(data), colours())


# --- what is refused ----------------------------------------------------------------------------


def test_refuses_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    for source in (path, b""):
        with pytest.raises(InputError, match=r"empty .0 bytes.; expected an image"):
            decode(source)


def test_refuses_text_named_png_and_says_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "note.png"
    path.write_text("Dear diary,")
    messages = set()
    for _ in range(2):
        with pytest.raises(InputError, match=r"not an image.*b'Dear dia'.*PNG or JPEG") as caught:
            decode(path)
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_refuses_truncated_files(kind: str) -> None:
    data = encoded(Image.fromarray(colours(64, 80)), kind)
    with pytest.raises(InputError, match=r"damaged image.*expected a complete file|not an image"):
        decode(data[: len(data) // 2])


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the file: No such file"):
        decode(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="cannot read the file"):
        decode(tmp_path)


def test_refuses_large_files_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bytes(101))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="101 bytes is over the limit of 100 bytes"):
        decode(path)


def test_refuses_a_decompression_bomb() -> None:
    bomb = png(np.zeros((1, 1)), 0, 8)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = bomb[:8] + chunk(b"IHDR", header) + bomb[33:]
    with pytest.raises(InputError, match=r"400000000 pixels.*limit of .* scale it down"):
        decode(bomb)


def test_refuses_what_is_over_our_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 619)
    with pytest.raises(InputError, match="31x20 pixels is over the limit of 619 pixels"):
        decode(encoded(Image.fromarray(colours()), "PNG"))


def test_never_runs_ghostscript() -> None:
    with pytest.raises(InputError, match=r"EPS.*convert it to PNG"):
        decode(encoded(Image.fromarray(colours()), "EPS"))


def test_running_out_of_memory_is_this_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(images, "to_rgb", fail)
    with pytest.raises(InputError, match="does not fit in memory; scale it down"):
        decode(encoded(Image.fromarray(colours()), "PNG"))


def real_files() -> list[bytes]:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    rgb, palette = Image.fromarray(colours()), Image.fromarray(colours()).quantize(9)
    sixteen = Image.fromarray(np.arange(620, dtype=np.uint16).reshape(20, 31) * 99)
    first, *rest = frames()
    files = [encoded(rgb, kind) for kind in ("PNG", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000")]
    files += [encoded(rgb, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [encoded(rgb.convert("CMYK"), "JPEG"), encoded(palette, "PNG", transparency=3)]
    files += [encoded(rgb, "JPEG", progressive=True), encoded(sixteen, "PNG")]
    files += [encoded(Image.fromarray(colours(channels=4)), kind) for kind in ("PNG", "WEBP")]
    files += [encoded(rgb, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg")]
    files += [encoded(first, kind, save_all=True, append_images=rest) for kind in ("GIF", "WEBP")]
    return files


FILES = real_files()
EDIT = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))


# Warnings: Pillow's, on what it finds odd. The limit keeps a header that says "huge" cheap.
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.integers(0, len(FILES) - 1),
    st.lists(EDIT, max_size=6),
    # Half of the edits go to the head, where every byte means something.
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
@example(0, [], [], 0.0)
def test_damage_is_an_input_error_or_nothing(
    number: int, edits: list[tuple[float, int]], head: list[tuple[int, int]], kept: float
) -> None:
    data = bytearray(FILES[number])
    for place, value in edits:
        data[int(place * len(data))] = value
    for index, value in head:
        data[index % len(data)] = value
    # Most examples keep the whole file.
    data = data[: int(min(1.0, kept * 3) * len(data))]
    got, message = np.zeros((1, 1, 3), np.uint8), "readable"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_DECODED_PIXELS", 10**6)
        try:
            got = decode(bytes(data))
        except InputError as error:
            message = str(error)
    assert message
    assert "\n" not in message
    assert " at 0x" not in message
    assert got.dtype == np.uint8
    assert got.ndim == 3
    assert got.shape[2] == 3
