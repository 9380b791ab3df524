"""Resizing decoded pictures: Pillow's bicubic filter, or the same one with SIMD instructions."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
from PIL import Image

from puma_edge.errors import require
from puma_edge.rgb import UInt8


class Resizer(str, Enum):
    """What resizes pictures.

    PILLOW is what training, calibration and parity use. SIMD, of the extra `fast`, rounds the
    weights to 16 bits: one value in 200 differs by 1, one in 100,000 by 2, of 255.
    """

    PILLOW = "pillow"
    SIMD = "simd"


@lru_cache(maxsize=1)
def best_resizer() -> Resizer:
    """Find the fastest that is installed."""
    return Resizer.SIMD if find_spec("cykooz_resizer") else Resizer.PILLOW


def resize(rgb: UInt8, width: int, height: int, resizer: Resizer) -> UInt8:
    """Resize a picture [h, w, 3] to [height, width, 3]: bicubic, with the filter widened to shrink.

    Raises:
        MissingExtraError: the extra `fast` is not installed.

    """
    if rgb.shape[:2] == (height, width):
        return rgb
    if resizer is Resizer.SIMD and _rows_first(rgb.shape[1], rgb.shape[0], width, height):
        return _resize_simd(rgb, width, height)
    picture = Image.fromarray(rgb)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def _rows_first(width: int, height: int, new_width: int, new_height: int) -> bool:
    """Tell whether Pillow surely resizes the rows before the columns.

    Up to Pillow 12 it always does; 13 begins with the columns of some pictures that lose more than
    twice as many rows as columns. Between the two passes values are rounded and cut to 0...255, so
    that the order shows at bright edges.
    """
    return new_height >= height or height - new_height <= 2 * (width - new_width)


def _resize_simd(rgb: UInt8, width: int, height: int) -> UInt8:
    simd = require("cykooz_resizer", "fast")
    kind, bicubic = simd.PixelType.U8x3, simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
    options, worker = simd.ResizeOptions(bicubic), simd.Resizer()
    picture = simd.ImageData(rgb.shape[1], rgb.shape[0], kind, rgb.tobytes())
    # One call for both would begin with the columns.
    for size in ((width, rgb.shape[0]), (width, height)):
        if size != (picture.width, picture.height):
            target = simd.ImageData(*size, kind)
            worker.resize(picture, target, options)
            picture = target
    return np.frombuffer(picture.get_buffer(), np.uint8).reshape(height, width, 3)
