"""Pictures of noise, of several frames, and PNG files of kinds that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from puma_edge.images import UInt8


def colours(height: int = 20, width: int = 31, channels: int = 3) -> UInt8:
    """Draw noise: [height, width, channels], or [height, width] of one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(channels).integers(0, 256, shape, dtype=np.uint8)


def frames() -> list[Image.Image]:
    """Draw three pictures of one size and different colours."""
    return [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]


def chunk(name: bytes, data: bytes) -> bytes:
    """Write one part of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: NDArray[Any], colour: int, depth: int, extra: bytes = b"") -> bytes:
    """Write a PNG of a kind that Pillow does not write."""
    height, width = values.shape[:2]
    kind = ">u2" if depth == 16 else "u1"
    rows = b"".join(b"\0" + row.astype(kind).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")
