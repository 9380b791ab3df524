"""How alike two models rank the same candidates, modality pair by modality pair; torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.metrics import overlap_at_k, rank_agreement, recall_at_k

Float32 = NDArray[np.float32]
TOP = 10  # hits whose order is compared


@dataclass(frozen=True)
class Pair:
    """Queries of one modality and the candidates of another; rows of one table of embeddings.

    Attributes:
        name: "t->i", and the data set's name where there are several.
        queries: rows of the queries.
        documents: rows of the candidates they look among.
        answers: for each query places in `documents`; empty where nothing is labelled.
        k: hits that recall looks at.
    """

    name: str
    queries: tuple[int, ...]
    documents: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...] = ()
    k: int = 5

    def scores(self, embeddings: Float32) -> Float32:
        """Similarities [queries, documents]."""
        documents = embeddings[list(self.documents)]
        return np.asarray(embeddings[list(self.queries)] @ documents.T, np.float32)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Pair:
        """Read what `asdict` gave."""
        return cls(
            str(values["name"]),
            tuple(map(int, values["queries"])),
            tuple(map(int, values["documents"])),
            tuple(tuple(map(int, row)) for row in values["answers"]),
            int(values["k"]),
        )


@dataclass(frozen=True)
class PairParity:
    """How a model serves one pair, beside the reference.

    Attributes:
        pair: the pair's name.
        queries: how many.
        candidates: how many.
        mean_cosine: of its items' embeddings with the reference's.
        worst_cosine: the lowest of them.
        overlap: mean share of the reference's first ten hits that are found among the first ten;
            None where there are no more than ten candidates, which are always the same.
        agreement: mean rank agreement of the first ten; see `metrics.rank_agreement`.
        k: hits that recall looks at.
        recall: mean recall@k, None without labels.
        reference_recall: the reference's.
    """

    pair: str
    queries: int
    candidates: int
    mean_cosine: float
    worst_cosine: float
    overlap: float | None
    agreement: float
    k: int
    recall: float | None = None
    reference_recall: float | None = None

    @property
    def recall_lost(self) -> float:
        """Reference's recall less this one's, in points; 0 without labels."""
        if self.recall is None or self.reference_recall is None:
            return 0.0
        return self.reference_recall - self.recall


def compare_pairs(
    pairs: Sequence[Pair], reference: Float32, found: Float32
) -> tuple[PairParity, ...]:
    """Compare two models' embeddings [items, d] of the same items, pair by pair."""
    return tuple(_compare(pair, reference, found) for pair in pairs)


def _compare(pair: Pair, reference: Float32, found: Float32) -> PairParity:
    expected, scores = pair.scores(reference), pair.scores(found)
    near = cosines(reference, found)[[*pair.queries, *pair.documents]]
    overlap = overlap_at_k(expected, scores, TOP) if len(pair.documents) > TOP else None
    recall = [
        float(recall_at_k(one, pair.answers, pair.k).mean()) if pair.answers else None
        for one in (scores, expected)
    ]
    return PairParity(
        pair=pair.name,
        queries=len(pair.queries),
        candidates=len(pair.documents),
        mean_cosine=float(near.mean()),
        worst_cosine=float(near.min()),
        overlap=None if overlap is None else float(overlap.mean()),
        agreement=float(rank_agreement(expected, scores, TOP).mean()),
        k=pair.k,
        recall=recall[0],
        reference_recall=recall[1],
    )


def cosines(reference: Float32, found: Float32) -> Float32:
    """The cosine of each pair of rows [n]."""
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(found, axis=1)
    return np.asarray((reference * found).sum(axis=1) / lengths, np.float32)


def mean_agreement(pairs: Sequence[PairParity]) -> float:
    """Mean rank agreement, every pair counting the same."""
    return sum(one.agreement for one in pairs) / len(pairs)


def mean_recall(pairs: Sequence[PairParity]) -> tuple[float, float] | None:
    """Mean recall of the model and of the reference over labelled pairs; None without any."""
    labelled = [
        (one.recall, one.reference_recall)
        for one in pairs
        if one.recall is not None and one.reference_recall is not None
    ]
    if not labelled:
        return None
    found, expected = (sum(side) / len(labelled) for side in zip(*labelled, strict=True))
    return found, expected
