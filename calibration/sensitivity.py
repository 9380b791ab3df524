"""What rounding each group of linear layers alone costs in retrieval, not in tensor error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from puma_edge.calibration.calibrate import Calibration
from puma_edge.calibration.linears import find_groups
from puma_edge.calibration.onnx_files import load_model, shape_of
from puma_edge.calibration.qdq import Form
from puma_edge.calibration.quantize import PARTS, rewrite
from puma_edge.inputs import Batch
from puma_edge.retrieval import Pair, compare_pairs, mean_agreement, mean_recall
from puma_edge.runtimes.ort import CPU, open_session, text_feeds, token_width, vision_feeds

Float32 = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Unit:
    """What goes back to float together.

    Attributes:
        part: "vision" or "text".
        weights: names of its weights: the linear layers that read one tensor, or a token table.
        values: how many numbers they hold.
    """

    part: str
    weights: tuple[str, ...]
    values: int


@dataclass(frozen=True)
class Cost:
    """What rounding one unit alone costs.

    Attributes:
        unit: which.
        disagreement: 1 - mean rank agreement with the float model over all pairs.
        recall_lost: points of mean recall; 0 without labels.
    """

    unit: Unit
    disagreement: float
    recall_lost: float

    @property
    def total(self) -> float:
        """What units are ranked by; recall that rose by chance counts for nothing."""
        return self.disagreement + max(0.0, self.recall_lost)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self.unit) | {
            "disagreement": self.disagreement,
            "recall_lost": self.recall_lost,
        }


@dataclass(frozen=True)
class Trial:
    """Held-out items and who looks for whom among them.

    Attributes:
        batches: (rows, batch), all items once.
        pairs: of those rows.
    """

    batches: Sequence[tuple[Sequence[int], Batch]]
    pairs: Sequence[Pair]


def find_units(folder: Path) -> list[Unit]:
    """The units of a bundle's graphs, in graph order."""
    return [unit for part in PARTS for unit in _units(folder, part)]


def _units(folder: Path, part: str) -> list[Unit]:
    graph = load_model(_source(folder, part)).graph
    units = []
    for group in find_groups(graph):
        weights = [product.inputs[1] for product in group.products]
        values = sum(int(np.prod(shape_of(weight))) for weight in weights if weight is not None)
        units.append(Unit(part, group.weights, values))
    tables = {node.inputs[0] for node in graph if node.op_type == "Gather"}
    for table in tables:
        if table is not None and table.const_value is not None and len(shape_of(table)) == 2:
            units.append(Unit(part, (str(table.name),), int(np.prod(shape_of(table)))))
    return units


def measure_costs(
    folder: Path,
    calibration: Calibration,
    form: Form,
    trial: Trial,
    progress: Progress = lambda done, total: None,
) -> list[Cost]:
    """Round one unit after the other, alone, and compare what is found with the float model's.

    Args:
        folder: holds `vision.fp32.onnx` and `text.fp32.onnx`; it must be writable.
        calibration: the observations the scales are made from.
        form: for which engines.
        trial: items that were not calibrated on.
        progress: told how many units of how many are done.

    Returns:
        the units, the dearest first.
    """
    plain = _Plain.of(folder, trial)
    units = find_units(folder)
    names = frozenset(name for unit in units for name in unit.weights)
    costs = []
    for number, unit in enumerate(units):
        kept = names - set(unit.weights)
        # Beside the float graph, where the weights that are left alone may lie.
        path = folder / f"try.{unit.part}.onnx"
        try:
            source = _source(folder, unit.part)
            model, _ = rewrite(source, calibration, unit.part, form, kept)
            ir.save(model, path)
            found = plain.embed_with(unit.part, path)
        finally:
            path.unlink(missing_ok=True)
        costs.append(_cost(unit, trial, plain.embeddings, found))
        progress(number + 1, len(units))
    return sorted(costs, key=lambda cost: (-cost.total, cost.unit.part, cost.unit.weights))


def _cost(unit: Unit, trial: Trial, reference: Float32, found: Float32) -> Cost:
    pairs = compare_pairs(trial.pairs, reference, found)
    recall = mean_recall(pairs)
    lost = 0.0 if recall is None else recall[1] - recall[0]
    return Cost(unit, 1 - mean_agreement(pairs), lost)


@dataclass(frozen=True)
class _Plain:
    """The float model, and what it says of the trial: only what a unit can change runs again."""

    folder: Path
    trial: Trial
    text: Any
    tokens: list[Float32]
    embeddings: Float32

    @classmethod
    def of(cls, folder: Path, trial: Trial) -> _Plain:
        """Run the float graphs once."""
        text = open_session(_source(folder, "text"), (CPU,), None)
        width = int(text.get_outputs()[0].shape[-1])
        vision = partial(open_session, _source(folder, "vision"), (CPU,), None)
        tokens = _image_tokens(trial, vision, text)
        return cls(folder, trial, text, tokens, _embed(trial, text, tokens, width))

    def embed_with(self, part: str, path: Path) -> Float32:
        """Embeddings with another graph in the place of one."""
        session, width = open_session(path, (CPU,), None), self.embeddings.shape[1]
        if part == "text":
            return _embed(self.trial, session, self.tokens, width)
        tokens = _image_tokens(self.trial, lambda: session, self.text)
        return _embed(self.trial, self.text, tokens, width, self.embeddings)


def _image_tokens(trial: Trial, vision: Callable[[], Any], text: Any) -> list[Float32]:
    width = token_width(text)
    has_images = any(len(batch.n_patches) for _, batch in trial.batches)
    session = vision() if has_images else None
    return [
        session.run(None, vision_feeds(batch))[0]
        if session is not None and len(batch.n_patches)
        else np.zeros((0, width), np.float32)
        for _, batch in trial.batches
    ]


def _embed(
    trial: Trial,
    text: Any,
    tokens: Sequence[Float32],
    width: int,
    known: Float32 | None = None,
) -> Float32:
    """Embeddings of all rows; with `known`, those of batches without images are taken from it."""
    count = sum(len(rows) for rows, _ in trial.batches)
    result = np.zeros((count, width), np.float32)
    for (rows, batch), images in zip(trial.batches, tokens, strict=True):
        if known is not None and not len(images):
            result[rows] = known[rows]
        else:
            result[rows] = text.run(None, text_feeds(batch, images))[0]
    return result


def _source(folder: Path, part: str) -> Path:
    return folder / f"{part}.fp32.onnx"
