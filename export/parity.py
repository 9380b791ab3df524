"""Proof that an engine embeds as PyTorch does: torch-free, from items and reference embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from puma_edge.inputs import Encoded, Float32, InputSpec
from puma_edge.metrics import top_k
from puma_edge.runtimes.encoder import Encoder

FP32_TOLERANCE = 1e-4
BATCH_COSINE = 0.9999
MIN_MEAN_COSINE = {"fp32": 0.999999, "fp16": 0.9999, "int8": 0.97}


@dataclass(frozen=True)
class Parity:
    """How one precision compares with the fp32 PyTorch model.

    Attributes:
        items: items compared one by one.
        max_difference: largest difference of a coordinate.
        mean_cosine: mean cosine similarity to the reference.
        worst_cosine: that of the worst item.
        batch_cosine: worst cosine between an item alone, padded, and in a mixed batch.
        recall: task -> recall@k of this precision; empty without labels.
        reference_recall: task -> recall@k of PyTorch.
        agreement: share of queries whose top hit is the reference's own; only without labels.
        failures: what the gate holds against it, empty if it passed.
    """

    items: int
    max_difference: float
    mean_cosine: float
    worst_cosine: float
    batch_cosine: float
    recall: dict[int, float] = field(default_factory=dict)
    reference_recall: dict[int, float] = field(default_factory=dict)
    agreement: float | None = None
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the gate holds nothing against it."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def compare(reference: Float32, found: Float32) -> tuple[float, Float32]:
    """Largest difference of a coordinate, and the cosine of each pair of rows [n]."""
    difference = float(np.abs(reference - found).max())
    cosines = (reference * found).sum(axis=1) / (
        np.linalg.norm(reference, axis=1) * np.linalg.norm(found, axis=1)
    )
    return difference, cosines.astype(np.float32)


def batch_cosine(encoder: Encoder, spec: InputSpec, items: Sequence[Encoded]) -> float:
    """Worst cosine between each item alone and the same item in other company.

    The company is a mixed batch, and a batch padded far beyond the item's length by the longest
    item of all.
    """
    alone = np.concatenate([encoder.encode(spec.collate([item])) for item in items])
    mixed = encoder.encode(spec.collate(items))
    longest = max(items, key=lambda item: item.length)
    padded = np.concatenate([encoder.encode(spec.collate([item, longest]))[:1] for item in items])
    return float(min(compare(alone, mixed)[1].min(), compare(alone, padded)[1].min()))


def agreement(queries: Float32, documents: Float32, reference: tuple[Float32, Float32]) -> float:
    """Share of queries whose top hit is the one the reference model finds.

    Args:
        queries: [q, d] of the engine.
        documents: [n, d] of the engine.
        reference: the same two of the fp32 model.
    """
    found = top_k(queries @ documents.T, 1)
    expected = top_k(reference[0] @ reference[1].T, 1)
    return float((found == expected).mean())


def judge(parity: Parity, precision: str, max_loss: float) -> tuple[str, ...]:
    """What the gate holds against a precision, one line each.

    Args:
        parity: the comparison.
        precision: "fp32", "fp16" or "int8".
        max_loss: largest share of mean recall (or of agreement) that may be lost.
    """
    failures = []
    if precision == "fp32" and parity.max_difference > FP32_TOLERANCE:
        failures.append(
            f"largest difference to PyTorch {parity.max_difference:.2e}, at most {FP32_TOLERANCE}"
        )
    if parity.mean_cosine < MIN_MEAN_COSINE[precision]:
        failures.append(
            f"mean cosine {parity.mean_cosine:.5f}, at least {MIN_MEAN_COSINE[precision]}"
        )
    if parity.batch_cosine < BATCH_COSINE:
        failures.append(
            f"an item's embedding depends on its batch: cosine {parity.batch_cosine:.5f}, "
            f"at least {BATCH_COSINE}"
        )
    if parity.recall:
        found = sum(parity.recall.values()) / len(parity.recall)
        expected = sum(parity.reference_recall.values()) / len(parity.reference_recall)
        if found < expected * (1 - max_loss):
            failures.append(
                f"mean recall {found:.4f}, PyTorch {expected:.4f}: more than {max_loss:.1%} lost"
            )
    elif parity.agreement is not None and parity.agreement < 1 - max_loss:
        failures.append(f"agreement {parity.agreement:.3f}, at least {1 - max_loss:.3f}")
    return tuple(failures)
