"""Proof that an engine embeds as PyTorch does: torch-free, from items and reference embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from puma_edge.config import Thresholds
from puma_edge.export.probe import Probe
from puma_edge.inputs import Encoded, Float32, InputSpec
from puma_edge.retrieval import Pair, PairParity, compare_pairs, cosines, mean_recall
from puma_edge.runtimes.encoder import Encoder

FP32_TOLERANCE = 1e-4
BATCH_COSINE = 0.9999
LARGEST_HALF = 65504.0
IN_COMPANY = 16  # items compared alone and in other company


@dataclass(frozen=True)
class Limits:
    """What the gate asks of a precision.

    Attributes:
        thresholds: cosines, overlap and the recall of each pair.
        max_recall_loss: largest loss of mean recall, as a share of PyTorch's.
    """

    thresholds: Thresholds
    max_recall_loss: float

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Limits:
        """Read what `asdict` gave."""
        return cls(Thresholds(**values["thresholds"]), float(values["max_recall_loss"]))


@dataclass(frozen=True)
class Parity:
    """How one precision compares with the fp32 PyTorch model.

    Attributes:
        items: items whose embeddings were compared.
        max_difference: largest difference of a coordinate.
        mean_cosine: mean cosine similarity to the reference.
        worst_cosine: that of the worst item.
        batch_cosine: worst cosine between an item alone, padded, and in a mixed batch.
        pairs: retrieval in each modality pair.
        limits: what the gate asked.
        failures: what the gate holds against it, empty if it passed.
    """

    items: int
    max_difference: float
    mean_cosine: float
    worst_cosine: float
    batch_cosine: float
    pairs: tuple[PairParity, ...] = ()
    limits: Limits | None = None
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the gate holds nothing against it."""
        return not self.failures

    @property
    def overlap(self) -> float | None:
        """Lowest overlap of any pair; None where no pair has enough candidates for one."""
        known = [one.overlap for one in self.pairs if one.overlap is not None]
        return min(known, default=None)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def judge(
    pairs: Sequence[Pair],
    reference: Float32,
    found: Float32,
    batch_cosine: float,
    precision: str,
    limits: Limits,
) -> Parity:
    """Compare embeddings [n, d] of the same items, and say what the gate holds against them."""
    near = cosines(reference, found)
    parity = Parity(
        items=len(reference),
        max_difference=float(np.abs(reference - found).max()),
        mean_cosine=float(near.mean()),
        worst_cosine=float(near.min()),
        batch_cosine=batch_cosine,
        pairs=compare_pairs(pairs, reference, found),
        limits=limits,
    )
    failures = (*_by_item(parity, precision, limits), *_by_pair(parity, limits))
    return replace(parity, failures=failures)


def judge_halves(parity: Parity, largest: Mapping[str, float]) -> Parity:
    """Hold against a precision what float16 cannot hold, though the CPU's embeddings are right.

    Args:
        parity: the comparison on the CPU, which computes in float32.
        largest: value -> how large it gets; see `precision.largest_halves`.
    """
    beyond = tuple(
        f"{name} reaches {value:.0f}, and float16 ends at {LARGEST_HALF:.0f}: no number on a GPU"
        for name, value in largest.items()
        if not value <= LARGEST_HALF  # nor is NaN a number
    )
    return replace(parity, failures=(*parity.failures, *beyond))


def spread(items: Sequence[Encoded]) -> Sequence[Encoded]:
    """Of many items, `IN_COMPANY` in equal distances."""
    return items[:: max(1, len(items) // IN_COMPANY)][:IN_COMPANY]


def alone(encoder: Encoder, spec: InputSpec, probe: Probe) -> Float32:
    """Embeddings [n, d] of a probe's items, one by one."""
    rows = [encoder.encode(spec.collate([item])) for item in probe.items]
    return np.asarray(np.concatenate(rows), np.float32)


def in_company(encoder: Encoder, spec: InputSpec, items: Sequence[Encoded]) -> float:
    """Worst cosine between each item alone and the same item in other company.

    The company is a mixed batch, and a batch padded far beyond the item's length by the longest
    item of all.
    """
    items = spread(items)
    alone = np.concatenate([encoder.encode(spec.collate([item])) for item in items])
    mixed = encoder.encode(spec.collate(items))
    longest = max(items, key=lambda item: item.length)
    padded = np.concatenate([encoder.encode(spec.collate([item, longest]))[:1] for item in items])
    return float(min(cosines(alone, mixed).min(), cosines(alone, padded).min()))


def _by_item(parity: Parity, precision: str, limits: Limits) -> list[str]:
    asked, failures = limits.thresholds, []
    if precision == "fp32" and parity.max_difference > FP32_TOLERANCE:
        failures.append(
            f"largest difference to PyTorch {parity.max_difference:.2e}, at most {FP32_TOLERANCE}"
        )
    for name, value, least in (
        ("mean cosine", parity.mean_cosine, asked.mean_cosine),
        ("worst cosine", parity.worst_cosine, asked.worst_cosine),
    ):
        if not value >= least:
            failures.append(f"{name} {value:.6f}, at least {least}")
    if not parity.batch_cosine >= BATCH_COSINE:
        failures.append(
            f"an item's embedding depends on its batch: cosine {parity.batch_cosine:.5f}, "
            f"at least {BATCH_COSINE}"
        )
    return failures


def _by_pair(parity: Parity, limits: Limits) -> list[str]:
    asked, failures = limits.thresholds, []
    for one in parity.pairs:
        if one.overlap is not None and not one.overlap >= asked.overlap:
            failures.append(
                f"{one.pair}: {one.overlap:.3f} of the first ten hits are PyTorch's, at least "
                f"{asked.overlap}"
            )
        if one.recall_lost > max(asked.pair_recall_loss, 1 / one.queries) + 1e-9:
            failures.append(
                f"{one.pair}: recall@{one.k} {one.recall:.3f}, PyTorch {one.reference_recall:.3f}: "
                f"more than {asked.pair_recall_loss} lost"
            )
    recall = mean_recall(parity.pairs)
    if recall is None:
        return failures
    found, expected = recall
    # The answer of one query more or less is chance, however few there are.
    one_query = 1 / sum(one.queries for one in parity.pairs)
    if expected - found > max(expected * limits.max_recall_loss, one_query) + 1e-9:
        failures.append(
            f"mean recall {found:.4f}, PyTorch {expected:.4f}: more than "
            f"{limits.max_recall_loss:.1%} lost"
        )
    return failures
