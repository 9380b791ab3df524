"""The small model's exported graphs, what runs them, and items to run them on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from puma_edge.inputs import Batch, Encoded, Float32, collate
from puma_edge.runtimes.ort import OrtEncoder
from tests.models import LIMITS, PAD, exported, item

PARTS = ("vision", "text")
# Text alone, images alone, both; one image and two, of several sizes.
ITEMS = (
    item(5, seed=1),
    item(9, ((4, 6),), seed=2),
    item(2, ((2, 2), (8, 4)), seed=3),
    item(30, seed=4),
    item(0, ((6, 6),), seed=5),
)
# Patches of an item's images.
SIZES: tuple[tuple[tuple[int, int], ...], ...] = (
    (), ((4, 6),), ((2, 2), (8, 4)), ((6, 6),), ((2, 10),),
)  # fmt: skip
# Primitive operations that TensorRT 10.3 parses.
ALLOWED = frozenset(
    (
        *("Add", "Cast", "Clip", "Concat", "Cos", "Div", "Erf", "Expand", "Gather"),
        *("LayerNormalization", "Less", "LessOrEqual", "MatMul", "Mul", "Pow", "Range"),
        *("ReduceMean", "ReduceSum", "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Softmax"),
        *("Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
    )
)


def copy_graphs(folder: Path) -> Path:
    """Copy the fp32 graphs to a folder that may be written to."""
    for part in PARTS:
        shutil.copy(exported().folder / f"{part}.fp32.onnx", folder)
    return folder


def encoder(folder: Path, precision: str = "fp32") -> OrtEncoder:
    """ONNX Runtime on the graphs of a precision, with one thread."""
    vision, text = (folder / f"{part}.{precision}.onnx" for part in PARTS)
    return OrtEncoder(lambda: vision, text, threads=1)


def batch_of(items: Sequence[Encoded]) -> Batch:
    """One batch of items."""
    return collate(items, PAD, LIMITS)


def batch(*numbers: int) -> Batch:
    """One batch of some of `ITEMS`, by their numbers."""
    return batch_of([ITEMS[number] for number in numbers])


def embed(folder: Path, precision: str, items: Sequence[Encoded]) -> Float32:
    """Embed items in one batch: [items, dimension]."""
    return encoder(folder, precision).encode(batch_of(items))


def some(count: int, seed: int) -> list[Encoded]:
    """Random items of every kind, in turn."""
    rng = np.random.default_rng(seed)
    return [item(int(rng.integers(3, 30)), SIZES[n % 4], seed=seed + n) for n in range(count)]


def chosen(kinds: Sequence[tuple[int, int]]) -> list[Encoded]:
    """Items of so many words each, with images of those of `SIZES`."""
    return [item(words, SIZES[kind], seed=n) for n, (words, kind) in enumerate(kinds)]


def batches(items: list[Encoded]) -> list[Batch]:
    """Batches of six."""
    return [batch_of(items[start : start + 6]) for start in range(0, len(items), 6)]


def assert_padding_counts_for_nothing(engine: OrtEncoder, given: Batch) -> None:
    """What stands in a batch's padding does not touch its embeddings."""
    clean = engine.encode(given)
    given.input_ids[given.attention_mask == 0] = 77
    given.position_ids[:, given.attention_mask == 0] = 9
    for number, real in enumerate(given.n_patches):
        given.patches[number, real:] = 200
        given.patch_positions[number, real:] = 3
    np.testing.assert_allclose(engine.encode(given), clean, atol=1e-6)
