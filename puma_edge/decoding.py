"""From a file's bytes to the RGB a person sees, or the reason why not."""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from puma_edge.errors import InputError
from puma_edge.rgb import UInt8, orientation, to_rgb, upright

MAX_FILE_BYTES = 256 * 2**20
MAX_DECODED_PIXELS = 178_956_970  # Pillow's own limit on decompression bombs, as an error
# Decoding takes up to 17 bytes a pixel. Of pictures larger than this, one is decoded at a time, so
# that what several threads need together has a bound.
LARGE_PIXELS = 2**25
_large = threading.Lock()


def decode(source: Path | bytes) -> UInt8:
    """Decode an image file to RGB as a person sees it: [height, width, 3], uint8.

    EXIF rotation is applied, transparency laid over white, 16 bits scaled to 8, CMYK and palettes
    converted, and the first frame taken of an animation.

    Raises:
        InputError: the file cannot be read, is no image, is truncated, or is too large.

    """
    data = source if isinstance(source, bytes) else _read(source)
    if not data:
        raise InputError("the file is empty (0 bytes); expected an image")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse(image)
            with _large if image.width * image.height > LARGE_PIXELS else nullcontext():
                rgb = _quick_jpeg(image, data)
                if rgb is None:
                    image.load()
                    rgb = np.asarray(to_rgb(upright(image)))
                return rgb
    except InputError:
        raise
    except UnidentifiedImageError as error:
        # Pillow's own message names the buffer's address: of no use, and different every time.
        raise InputError(
            f"not an image, or of a kind Pillow cannot read (the file begins with {data[:8]!r}); "
            f"convert it to PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{_one_line(error)}; scale it down") from error
    except MemoryError as error:
        raise InputError("image does not fit in memory; scale it down") from error
    # Pillow's decoders raise many types on corrupt data (OSError, SyntaxError, struct.error, ...):
    # whatever it is, this one file is unreadable and the reason goes to the quarantine.
    except Exception as error:
        raise InputError(
            f"damaged image ({_one_line(error)}); expected a complete file, save it again"
        ) from error


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(
                f"file of {size} bytes is over the limit of {MAX_FILE_BYTES} bytes; scale it down"
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror or error}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refuse(image: Image.Image) -> None:
    """Raise InputError for what must not be decoded, from the header alone."""
    if image.format == "EPS":
        # Pillow would run Ghostscript on it: a program, from a folder nobody has looked through.
        raise InputError("an EPS file is a program for printers, no picture; convert it to PNG")
    if image.width * image.height > MAX_DECODED_PIXELS:
        raise InputError(
            f"image of {image.width}x{image.height} pixels is over the limit of "
            f"{MAX_DECODED_PIXELS} pixels; scale it down"
        )


@lru_cache(maxsize=1)
def _simplejpeg() -> Any:
    """Find the quicker JPEG decoder of the extra `fast`, if it is installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _quick_jpeg(image: Image.Image, data: bytes) -> UInt8 | None:
    """Decode a colour JPEG as Pillow would, quicker; None where Pillow must do it.

    Both hold libjpeg-turbo. Pillow knows which damage can be borne, and what CMYK looks like.
    """
    decoder = _simplejpeg()
    if decoder is None or image.format not in ("JPEG", "MPO") or image.mode != "RGB":
        return None
    try:
        rgb: UInt8 = decoder.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    if rgb.shape != (image.height, image.width, 3):
        return None
    turn = orientation(image)
    return rgb if turn is None else np.asarray(Image.fromarray(rgb).transpose(turn))
