"""Any picture becomes the RGB that a person would see: alpha, bits, colour spaces, turns."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from puma_edge.decoding import decode
from puma_edge.images import UInt8
from tests.edge import encoded
from tests.pictures import chunk, colours, frames, png


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
