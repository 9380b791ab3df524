"""A question in words or pictures -> the best documents of an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puma_edge.errors import InputError, PumaError, UsageError
from puma_edge.images import UInt8, decode
from puma_edge.inputs import Float32, InputSpec, Item
from puma_edge.prompts import Modality
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.index import Index


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        text: words, None or blank for none.
        image: a picture, None for none.
        instruction: what kind of answer is wanted; None for the bundle's own, "" for none.

    """

    text: str | None = None
    image: Path | None = None
    instruction: str | None = None

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
    rows = [encoder.encode(spec.collate([spec.encode(_item(q, instructions))])) for q in queries]
    result: Float32 = np.concatenate(rows)
    if result.shape != (len(queries), encoder.dimension):
        raise PumaError(
            f"{encoder.provider} returned embeddings of shape {result.shape}, "
            f"expected {(len(queries), encoder.dimension)}; export the bundle again"
        )
    return result


def search(index: Index, vectors: Float32, top: int) -> list[list[Hit]]:
    """Find the best documents for each query embedding [queries, d].

    Raises:
        UsageError, PumaError: see `Index.search`.

    """
    found = index.search(vectors, top)
    results: list[list[Hit]] = []
    for scores, rows in zip(found.scores.tolist(), found.rows.tolist(), strict=True):
        records = index.records(rows)
        results.append(
            [
                Hit(rank, score, row, record.id, record.path, record.modality, record.text)
                for rank, (score, row, record) in enumerate(
                    zip(scores, rows, records, strict=True), 1
                )
            ]
        )
    return results


def _item(query: Query, instructions: Mapping[str, str]) -> Item:
    text = (query.text or "").strip() or None
    if text is None and query.image is None:
        raise UsageError('nothing to search for; give words ("a fox"), --image FILE, or both')
    images = () if query.image is None else (_decode(query.image),)
    instruction = query.instruction
    if instruction is None:
        instruction = instructions.get(query.modality.value)
    return Item(text, images, instruction or None)


def _decode(path: Path) -> UInt8:
    try:
        return decode(path)
    except InputError as error:
        raise PumaError(f"{path}: {error}") from None
