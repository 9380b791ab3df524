"""From RGB to the uint8 patches every engine takes: the one image preprocessing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import InputError, UsageError
from puma_edge.resize import Resizer, resize
from puma_edge.rgb import UInt8 as UInt8

# What CLIP was trained with, and Qwen2-VL after it.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_ASPECT_RATIO = 200  # the reference processor refuses more


@dataclass(frozen=True)
class PixelLimits:
    """The sizes an image is brought to: multiples of `patch_size * merge_size`, between two areas.

    Attributes:
        min_pixels: smallest area after resizing, in pixels.
        max_pixels: largest area after resizing, in pixels.
        patch_size: edge of a vision patch, in pixels.
        merge_size: patches per edge that become one token of the language model.

    Raises:
        UsageError: the areas are not positive, or in the wrong order.

    """

    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 300 * 28 * 28
    patch_size: int = 14
    merge_size: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise UsageError(
                f"pixel limits {self.min_pixels} to {self.max_pixels}: expected two areas in "
                f"pixels, 1 <= min_pixels <= max_pixels"
            )

    @property
    def max_tokens(self) -> int:
        """The most tokens of the language model that `grid` can make of an image.

        That is the area's, except for a strip so thin that its short side has to be widened to one
        token, and where the least area is rounded up to more than the largest.
        """
        factor, thin = self.patch_size * self.merge_size, math.sqrt(MAX_ASPECT_RATIO)
        edge = math.sqrt(self.min_pixels) / factor  # of the least area as a square, in tokens
        # The longest side beside a short one of 1, 2, ... tokens; both are rounded up, and a whole
        # number may be too, where it comes out as a little more.
        longest = [edge * thin]
        longest += [edge * min(thin, edge / short) for short in range(1, int(edge) + 1)]
        return max(
            self.max_pixels // factor**2,
            int(math.sqrt(MAX_ASPECT_RATIO * self.max_pixels) / factor),
            *(short * (int(long) + 1) for short, long in enumerate(longest, start=1)),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches along height and width for an image of this size (Qwen2-VL's `smart_resize`).

        Raises:
            InputError: the image is more than 200 times longer than wide.

        """
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise InputError(
                f"image of {width}x{height} pixels: the longer side may be at most "
                f"{MAX_ASPECT_RATIO} times the shorter; crop it"
            )
        factor = self.patch_size * self.merge_size
        rows, columns = round(height / factor), round(width / factor)
        if rows * columns * factor**2 > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / shrink / factor))
            columns = max(1, math.floor(width / shrink / factor))
        elif rows * columns * factor**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * grow / factor)
            columns = math.ceil(width * grow / factor)
        return rows * self.merge_size, columns * self.merge_size


@dataclass(frozen=True)
class Patches:
    """One image, cut for the vision tower.

    Attributes:
        pixels: uint8 [n, 3 * patch_size**2], n = rows * columns, each patch as (channel, y, x);
            the `merge_size**2` patches of one token stand next to each other.
        rows: patches from top to bottom.
        columns: patches from left to right.

    """

    pixels: UInt8
    rows: int
    columns: int


def patchify(rgb: UInt8, limits: PixelLimits, resizer: Resizer = Resizer.PILLOW) -> Patches:
    """Resize a decoded image within `limits` (bicubic) and cut it into patches.

    With Pillow as the resizer, equal to transformers' `Qwen2VLImageProcessorPil` from the same RGB
    values on, once `normalize` is applied.

    Args:
        rgb: [height, width, 3], uint8.
        limits: the areas and the patch size.
        resizer: what resizes.

    Raises:
        InputError: the array is no RGB image, or see `PixelLimits.grid`.

    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise InputError(
            f"image array of shape {rgb.shape} and type {rgb.dtype}: expected [height, width, 3] "
            f"of uint8, as `decode` returns it"
        )
    rows, columns = limits.grid(rgb.shape[0], rgb.shape[1])
    patch, merge = limits.patch_size, limits.merge_size
    rgb = resize(rgb, columns * patch, rows * patch, resizer)
    blocks = rgb.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    pixels = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3 * patch * patch)
    return Patches(np.ascontiguousarray(pixels), rows, columns)


def normalize(
    pixels: UInt8,
    mean: tuple[float, ...] = IMAGE_MEAN,
    std: tuple[float, ...] = IMAGE_STD,
) -> NDArray[np.float32]:
    """uint8 patches [n, 3*p*p] -> the float pixel values [n, 3*2*p*p] of the PyTorch model.

    The time axis of Qwen2-VL holds a still image twice. The exported graphs take the uint8 patches
    instead, with mean, deviation and the doubling folded into their first weights.
    """
    planes = pixels.reshape(len(pixels), 3, 1, -1)
    values = np.empty((len(pixels), 3, 2, planes.shape[-1]), np.float32)
    for channel, table in enumerate(_normalized_values(mean, std)):
        values[:, channel] = table[planes[:, channel]]
    return values.reshape(len(pixels), -1)


def _normalized_values(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """[3, 256]: what each byte becomes, in the reference's order of roundings (so: bit for bit)."""
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    centre = np.asarray(mean, np.float32)[:, None]
    spread = np.asarray(std, np.float32)[:, None]
    values: NDArray[np.float32] = (scaled - centre) / spread
    return values
