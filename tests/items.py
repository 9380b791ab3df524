"""Encoded items with images of noise, of sizes that are drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from puma_edge.images import Patches
from puma_edge.inputs import Encoded, InputSpec

Sizes = list[tuple[int, int]]
# Patches come in multiples of two; up to 24 rows, with very long ones among them.
SIZE = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(
    lambda size: (2 * size[0], 2 * size[1])
)
SIZES = st.lists(SIZE | st.sampled_from([(2, 2), (2, 200), (200, 2)]), max_size=4)


def noise(rows: int, columns: int, seed: int = 0) -> Patches:
    """Draw the patches of an image, [rows * columns, 588]."""
    rng = np.random.default_rng(seed)
    return Patches(rng.integers(0, 256, (rows * columns, 588), dtype=np.uint8), rows, columns)


def item(spec: InputSpec, sizes: Sizes, text: str | None = "a fox", seed: int = 0) -> Encoded:
    """An item with images of these sizes, in patches; every second seed has an instruction."""
    cut = tuple(noise(*size, seed=seed + number) for number, size in enumerate(sizes))
    return spec.encode_patches("Find it." if seed % 2 else None, text, cut)
