"""The bundle's probe: raw inputs with PyTorch's embeddings, to check an engine where it serves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bundle import PROBE, Bundle
from puma_edge.errors import PumaError
from puma_edge.images import Patches
from puma_edge.inputs import Encoded, Float32
from puma_edge.retrieval import Pair

PAIRS = "pairs"


@dataclass(frozen=True)
class Probe:
    """Items with the embeddings [n, d] of the fp32 PyTorch model, and who looks for whom."""

    items: list[Encoded]
    embeddings: Float32
    pairs: tuple[Pair, ...] = ()


def write_probe(folder: Path, probe: Probe) -> None:
    """Write `probe.npz` into `folder`."""
    items, pairs = probe.items, json.dumps([asdict(pair) for pair in probe.pairs])
    arrays: dict[str, Any] = {"embeddings": probe.embeddings, PAIRS: np.asarray(pairs)}
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
            rows = json.loads(str(arrays[PAIRS])) if PAIRS in arrays else []
            pairs = tuple(Pair.from_json(row) for row in rows)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PumaError(f"{path} cannot be read ({error}); export the bundle again") from None
    return Probe(items, embeddings, pairs)


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
