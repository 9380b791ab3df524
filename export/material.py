"""What an export is calibrated and judged on: labelled queries, or a folder of anything."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puma_edge.calibration.sample import Sampled, describe, draw
from puma_edge.data import Dataset, SourceEncoder
from puma_edge.errors import PumaError
from puma_edge.export.held_out import HeldOut, Limits, from_items, from_split
from puma_edge.inputs import Batch, Encoded, InputSpec
from puma_edge.progress import Progress
from puma_edge.prompts import Modality
from puma_edge.runtimes.corpus import scan

CALIBRATION_BATCH = 16
PROBE = Limits(queries=6, documents=16)
TUNED = Limits(queries=16, documents=48)
FOLDER_HELD = 64  # items of a folder kept apart for each of the two purposes
HELD_LEAST = 2  # of each modality: one asks, one is asked for


@dataclass(frozen=True)
class Material:
    """Items for calibration, for choosing exceptions, and for the comparison.

    Attributes:
        calibration: batches the INT8 ranges are taken from.
        tuned: what exceptions from INT8 are chosen on.
        judged: what the gate looks at; None for a shape without weights, where only the probe is.
        probe: a few items that go into the bundle.
        source: where the calibration items come from, for the manifest.
    """

    calibration: list[Batch]
    tuned: HeldOut
    judged: HeldOut | None
    probe: HeldOut
    source: dict[str, Any]


def from_dataset(
    spec: InputSpec,
    data: Dataset,
    count: int,
    seed: int,
    *,
    judged: Limits | None,
    probe: Limits = PROBE,
) -> Material:
    """Calibrate and choose on validation queries, not the same ones; judge on test queries.

    Raises:
        PumaError: the data set has no validation or no test queries.
    """
    if not data.examples["val"] or not data.examples["test"]:
        raise PumaError(
            f"{data.folder} has no validation or no test queries; export needs both to calibrate "
            "and to judge (or give --calibration with a folder of images and texts)"
        )
    available = data.examples["val"]
    # Half of a small split stays for choosing exceptions.
    many = max(min(count // 2, len(available) // 2), 1)
    examples = random.Random(seed).sample(available, many)
    load = SourceEncoder(spec)
    items = [load(one.query, data.instructions[one.modalities][0]) for one in examples]
    items += [load(data.candidates[one.positives[0]]) for one in examples]
    used = {one.qid for one in examples}
    return Material(
        batches(spec, items),
        from_split(spec, data, "val", TUNED, seed, used),
        None if judged is None else from_split(spec, data, "test", judged, seed),
        from_split(spec, data, "test", probe, seed),
        {"data": data.folder.name, "split": "val", "queries": many, "sha256": _hash(used)},
    )


def _hash(ids: set[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def from_folder(
    spec: InputSpec,
    folder: Path,
    instructions: dict[str, str],
    count: int,
    seed: int,
    tell: Callable[[str], None],
) -> Material:
    """Calibrate on a folder's own documents and compare on others; some of them are the queries.

    Raises:
        PumaError: the folder holds too few readable documents, or too few with an image.
    """
    with Progress(f"sampling {folder}", count) as progress:
        sample = draw(
            scan(folder),
            count + 2 * FOLDER_HELD,
            seed,
            lambda done, total: progress.update(done, f"of at most {total} items"),
        )
    for warning in sample.warnings:
        tell(f"warning: {warning}")
    judged, tuned, rest = _shares(sample.items)
    if not any(one.item.images for one in judged):
        raise PumaError(
            f"--calibration {folder} has too few pictures to judge the vision graph on; add some: "
            f"{HELD_LEAST + 1} at least, all of them with words or all without"
        )
    probe = from_items(spec, [one.item for one in judged], instructions)
    return Material(
        batches(spec, [spec.encode(one.item) for one in rest]),
        from_items(spec, [one.item for one in tuned], instructions),
        probe,
        probe,
        describe(sample.folder, tuple(rest)),
    )


def _shares(items: Sequence[Sampled]) -> tuple[list[Sampled], list[Sampled], list[Sampled]]:
    """What is judged on, what exceptions are chosen on, and what is calibrated on.

    An even number of each modality is judged, so that every other one asks and the others are asked
    for. Where too few are left, exceptions are chosen on what is calibrated on. One or two
    items of a modality are calibrated on only.
    """
    kinds = [[one for one in items if one.item.modality is kind] for kind in Modality]
    kinds = [many for many in kinds if many]
    judged: list[Sampled] = []
    tuned: list[Sampled] = []
    rest: list[Sampled] = []
    for many in kinds:
        held = min(FOLDER_HELD // len(kinds), len(many) // 4) // 2 * 2
        held = held or HELD_LEAST * (len(many) > HELD_LEAST)
        left = many[held:]
        judged += many[:held]
        tuned += left[: held or len(left)]
        rest += left[held:] or left
    return judged, tuned, rest


def batches(spec: InputSpec, items: Sequence[Encoded]) -> list[Batch]:
    """Items of like length together, `CALIBRATION_BATCH` at a time."""
    ordered = sorted(items, key=lambda item: (len(item.images), item.length))
    return [
        spec.collate(ordered[start : start + CALIBRATION_BATCH])
        for start in range(0, len(ordered), CALIBRATION_BATCH)
    ]
