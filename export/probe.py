"""The bundle's probe: raw inputs with PyTorch's embeddings, to check an engine where it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bundle import PROBE, Bundle
from puma_edge.errors import PumaError
from puma_edge.images import Patches
from puma_edge.inputs import Encoded, Float32


@dataclass(frozen=True)
class Probe:
    """Items with the embeddings [n, d] of the fp32 PyTorch model."""

    items: list[Encoded]
    embeddings: Float32


def write_probe(folder: Path, items: Sequence[Encoded], embeddings: Float32) -> None:
    """Write `probe.npz` into `folder`."""
    arrays: dict[str, Any] = {"embeddings": embeddings}
    for number, item in enumerate(items):
        arrays[f"{number}.input_ids"] = item.input_ids
        arrays[f"{number}.positions"] = item.positions
        arrays[f"{number}.image_places"] = item.image_places
        for place, image in enumerate(item.images):
            arrays[f"{number}.image.{place}"] = image.pixels
            arrays[f"{number}.size.{place}"] = np.asarray((image.rows, image.columns), np.int64)
    np.savez_compressed(folder / PROBE, **arrays)


def read_probe(bundle: Bundle) -> Probe:
    """Read and verify a bundle's probe.

    Raises:
        PumaError: it is missing or damaged.
    """
    path = bundle.file(PROBE)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            embeddings = arrays["embeddings"]
            items = [_item(arrays, number) for number in range(len(embeddings))]
    except (OSError, ValueError, KeyError) as error:
        raise PumaError(f"{path} cannot be read ({error}); export the bundle again") from None
    return Probe(items, embeddings)


def _item(arrays: Any, number: int) -> Encoded:
    images: list[Patches] = []
    while f"{number}.image.{len(images)}" in arrays:
        rows, columns = arrays[f"{number}.size.{len(images)}"].tolist()
        images.append(Patches(arrays[f"{number}.image.{len(images)}"], rows, columns))
    return Encoded(
        arrays[f"{number}.input_ids"],
        arrays[f"{number}.positions"],
        tuple(images),
        arrays[f"{number}.image_places"],
    )
