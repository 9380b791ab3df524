"""A question in words or pictures -> the best documents of an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puma_edge.decoding import decode
from puma_edge.errors import InputError, PumaError, UsageError
from puma_edge.images import Patches, PixelLimits, patchify
from puma_edge.inputs import Encoded, Float32, InputSpec
from puma_edge.prompts import Modality
from puma_edge.resize import best_resizer
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.records import Record


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        text: words, None or blank for none.
        image: a picture, None for none.
        instruction: what kind of answer is wanted; None for the bundle's own, "" for none.
        like: the id of the row that is itself the query, None where it is none.

    """

    text: str | None = None
    image: Path | None = None
    instruction: str | None = None
    like: str | None = None

    @property
    def modality(self) -> Modality:
        """Text, image, or both."""
        return Modality.of(
            has_text=bool((self.text or "").strip()), has_image=self.image is not None
        )


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        rank: 1 for the best.
        score: cosine similarity with the query.
        row: its row in the index.
        id: its id.
        path: the file to show, relative to the corpus.
        modality: text, image or both.
        text: the beginning of its text.

    """

    rank: int
    score: float
    row: int
    id: str
    path: str
    modality: Modality
    text: str


@dataclass(frozen=True)
class Wanted:
    """Which documents are wanted of each query.

    Attributes:
        top: how many.
        settings: how to search, and among which rows.
        threshold: their least score, None for any.
        without: of each query the row that is no hit, None for none; empty for none at all.

    Raises:
        UsageError: `top` is less than 1, or the threshold no number.

    """

    top: int
    settings: SearchSettings | None = None
    threshold: float | None = None
    without: Sequence[int | None] = ()

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UsageError(f"top is {self.top}; expected 1 or more")
        if self.threshold is not None and np.isnan(self.threshold):
            raise UsageError("threshold is nan; expected a number, like 0.3")


def embed_queries(
    queries: Sequence[Query], spec: InputSpec, encoder: Encoder, instructions: Mapping[str, str]
) -> Float32:
    """Embed queries, one at a time: [queries, d].

    Args:
        queries: at least one.
        spec: how items become arrays.
        encoder: the model.
        instructions: the bundle's instruction for each modality, used where a query has none.

    Raises:
        UsageError: a query has neither words nor a picture.
        PumaError: a picture cannot be read, or the encoder's answer has the wrong shape.

    """
    rows = [encoder.encode(spec.collate([_encode(q, spec, instructions)])) for q in queries]
    result: Float32 = np.concatenate(rows)
    if result.shape != (len(queries), encoder.dimension):
        raise PumaError(
            f"{encoder.provider} returned embeddings of shape {result.shape}, "
            f"expected {(len(queries), encoder.dimension)}; export the bundle again"
        )
    return result


def search(index: Index, vectors: Float32, wanted: Wanted) -> list[list[Hit]]:
    """Find the best documents for each query embedding [queries, d].

    Raises:
        UsageError, PumaError: see `Index.search`.

    """
    found = index.search(vectors, wanted.top + bool(wanted.without), wanted.settings)
    without = wanted.without or [None] * len(vectors)
    least = -np.inf if wanted.threshold is None else wanted.threshold
    pairs = [
        [
            (score, row)
            for score, row in zip(scores, rows, strict=True)
            if row != itself and score >= least
        ][: wanted.top]
        for scores, rows, itself in zip(
            found.scores.tolist(), found.rows.tolist(), without, strict=True
        )
    ]
    # Looked up at once: many queries share the parts of the table that are read.
    rows = sorted({row for line in pairs for _, row in line})
    records = dict(zip(rows, index.records(rows), strict=True))
    return [
        [_hit(rank, score, row, records[row]) for rank, (score, row) in enumerate(line, 1)]
        for line in pairs
    ]


def _hit(rank: int, score: float, row: int, record: Record) -> Hit:
    return Hit(rank, score, row, record.id, record.path, record.modality, record.text)


def _encode(query: Query, spec: InputSpec, instructions: Mapping[str, str]) -> Encoded:
    text = (query.text or "").strip() or None
    if text is None and query.image is None:
        raise UsageError('nothing to search for; give words ("a fox"), --image FILE, or both')
    images = () if query.image is None else (_read(query.image, spec.limits),)
    instruction = query.instruction
    if instruction is None:
        instruction = instructions.get(query.modality.value)
    return spec.encode_patches(instruction or None, text, images)


def _read(path: Path, limits: PixelLimits) -> Patches:
    """Decode and cut a picture as `embed` does, so that a picture finds itself."""
    try:
        return patchify(decode(path), limits, best_resizer())
    except InputError as error:
        raise PumaError(f"{path}: {error}") from None
