"""A picture as Pillow read it -> upright, 8 bits, RGB: as a person sees it."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

UInt8 = NDArray[np.uint8]

# EXIF's number for how the camera was held -> what turns the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF data asks for."""
    turn = orientation(image)
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> Image.Transpose | None:
    """Find what EXIF's orientation asks for.

    Not `ImageOps.exif_transpose`: that writes all the other tags anew, and fails on photographs
    whose tags are odd but whose pixels are fine.
    """
    try:
        number = image.getexif().get(ExifTags.Base.Orientation)
    # What Pillow raises on EXIF it cannot parse; viewers show such a picture as it lies.
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return None
    return _UPRIGHT.get(number) if isinstance(number, int) else None


def to_rgb(image: Image.Image) -> Image.Image:
    """Lay transparency over white, scale 16 bits to 8, convert palettes and CMYK."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = _to_eight_bits(values)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(values: NDArray[np.generic]) -> UInt8:
    """Scale a grey image of 16 or 32 bits, or of floats, to 8 bits; Pillow would clip it.

    Files of 32 bits do not say which value is white: it is the least of the usual ones that none
    of the values exceeds.
    """
    height, width = values.shape
    step = max(1, 2**20 // max(1, width))  # rows at a time: as floats they take eight times as much
    strips = [slice(start, start + step) for start in range(0, height, step)]
    most = max((float(_finite(values[strip]).max(initial=0.0)) for strip in strips), default=0.0)
    is_float = np.issubdtype(values.dtype, np.floating)
    usual = (1.0, 255.0, 65535.0) if is_float else (65535.0, 2.0**31 - 1)
    white = next((white for white in usual if most <= white), most)
    grey = np.empty((height, width), np.uint8)
    for strip in strips:
        grey[strip] = np.clip(np.rint(_finite(values[strip]) * (255.0 / white)), 0, 255)
    return grey


def _finite(values: NDArray[np.generic]) -> NDArray[np.float64]:
    numbers = values.astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, 0.0)
