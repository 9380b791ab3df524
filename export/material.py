"""What an export is calibrated and judged on: labelled queries, or a folder of anything."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from puma_edge.data import Dataset, SourceEncoder
from puma_edge.errors import InputError, PumaError
from puma_edge.images import decode
from puma_edge.inputs import Batch, Encoded, InputSpec, Item
from puma_edge.prompts import Modality
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.documents import load

CALIBRATION_BATCH = 16
COMPARED = 24  # documents, and half as many queries, compared item by item


@dataclass(frozen=True)
class Material:
    """Items for calibration and for the comparison.

    Attributes:
        calibration: batches the INT8 ranges are taken from.
        documents: candidates compared one by one.
        queries: queries compared one by one.
        sources: where the calibration items come from, for the manifest.
    """

    calibration: list[Batch]
    documents: list[Encoded]
    queries: list[Encoded]
    source: str


def from_dataset(spec: InputSpec, data: Dataset, count: int, compared: int, seed: int) -> Material:
    """Calibrate on validation queries and their answers; compare test queries and theirs.

    Raises:
        PumaError: the data set has no validation or no test queries.
    """
    if not data.examples["val"] or not data.examples["test"]:
        raise PumaError(
            f"{data.folder} has no validation or no test queries; export needs both to calibrate "
            "and to judge (or give --calibration with a folder of images and texts)"
        )
    draw = random.Random(seed)
    load_source = SourceEncoder(spec)

    def sides(split: str, size: int) -> tuple[list[Encoded], list[Encoded]]:
        examples = draw.sample(data.examples[split], min(size, len(data.examples[split])))
        queries = [load_source(one.query, data.instructions[one.modalities][0]) for one in examples]
        answers = [load_source(data.candidates[one.positives[0]]) for one in examples]
        return queries, answers

    queries, answers = sides("val", count // 2)
    asked, documents = sides("test", compared)
    calibration = batches(spec, [*queries, *answers])
    return Material(calibration, documents, asked[: compared // 2], f"{data.folder.name} val")


def from_folder(
    spec: InputSpec,
    folder: Path,
    instructions: dict[str, str],
    count: int,
    compared: int,
    seed: int,
) -> Material:
    """Calibrate and compare on a folder's own documents; its texts and pictures are the queries.

    Raises:
        PumaError: the folder holds fewer than two readable documents.
    """
    corpus = scan(folder)
    draw = random.Random(seed)
    by_kind: dict[Modality, list[Item]] = {}
    chosen = draw.sample(corpus.documents, min(4 * count, len(corpus.documents)))
    for document in chosen:
        many = by_kind.setdefault(document.modality, [])
        if len(many) >= count:
            continue
        try:
            parts = load(corpus.root, document)
            images = () if parts.image is None else (decode(parts.image),)
            many.append(Item(parts.text, images))
        except InputError:
            continue  # `embed` will name it; a calibration sample does without
    items = [item for many in by_kind.values() for item in many[: count // len(by_kind) or 1]]
    if len(items) < 2:
        raise PumaError(f"{folder} has {len(items)} readable items; calibration needs some dozens")
    draw.shuffle(items)
    encoded = [spec.encode(item) for item in items]
    queries = [
        spec.encode(Item(item.text, item.images, instructions.get(item.modality.value)))
        for item in items[: compared // 2]
    ]
    return Material(batches(spec, encoded), encoded[:compared], queries, str(folder.name))


def batches(spec: InputSpec, items: Sequence[Encoded]) -> list[Batch]:
    """Items of like length together, `CALIBRATION_BATCH` at a time."""
    ordered = sorted(items, key=lambda item: (len(item.images), item.length))
    return [
        spec.collate(ordered[start : start + CALIBRATION_BATCH])
        for start in range(0, len(ordered), CALIBRATION_BATCH)
    ]
