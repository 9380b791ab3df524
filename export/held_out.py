"""Items kept apart: what a precision is judged on, and what its exceptions are chosen on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from puma_edge.data import TASK_NAMES, Dataset, Example, Source, SourceEncoder
from puma_edge.evaluate import BATCH, RECALL_AT, WIDER
from puma_edge.inputs import Batch, Encoded, Float32, InputSpec, Item
from puma_edge.prompts import Modality
from puma_edge.retrieval import Pair
from puma_edge.runtimes.encoder import Encoder

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HeldOut:
    """Queries and candidates; an item is read when it is asked for.

    Attributes:
        sizes: (images, length) of each item: like ones share a batch.
        load: makes an item ready for an encoder.
        pairs: who looks for whom.
    """

    sizes: tuple[tuple[int, int], ...]
    load: Callable[[int], Encoded]
    pairs: tuple[Pair, ...]

    def batches(self) -> list[list[int]]:
        """Rows of like items, `BATCH` at a time."""
        order = sorted(range(len(self.sizes)), key=self.sizes.__getitem__)
        return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def collated(self, spec: InputSpec) -> list[tuple[list[int], Batch]]:
        """All batches in memory, with their rows."""
        return [(rows, spec.collate([self.load(row) for row in rows])) for rows in self.batches()]


def embed(
    encoder: Encoder,
    spec: InputSpec,
    held: HeldOut,
    progress: Progress = lambda done, total: None,
) -> Float32:
    """Embeddings [n, d] of all items, in their order."""
    result = np.zeros((len(held.sizes), encoder.dimension), np.float32)
    done = 0
    for rows in held.batches():
        result[rows] = encoder.encode(spec.collate([held.load(row) for row in rows]))
        done += len(rows)
        progress(done, len(result))
    return result


@dataclass(frozen=True)
class Limits:
    """How much is drawn.

    Attributes:
        queries: of each pair.
        documents: of each pair's pool; the answers of its queries are always among them.
    """

    queries: int
    documents: int


def from_split(
    spec: InputSpec,
    data: Dataset,
    split: str,
    limits: Limits,
    seed: int,
    without: Collection[str] = (),
) -> HeldOut:
    """Draw queries of every task and data set of a split, and pools around their answers.

    Args:
        spec: how items become arrays.
        data: the data set.
        split: "val" or "test".
        limits: how many.
        seed: of the draw.
        without: ids of queries that are not to be drawn.
    """
    by_task: dict[tuple[int, str], list[Example]] = {}
    for one in data.examples[split]:
        if one.task in data.pools and one.qid not in without:
            by_task.setdefault((one.task, one.name), []).append(one)
    names = [task for task, _ in by_task]
    sources: list[tuple[Source, str | None]] = []
    row_of: dict[str, int] = {}
    pairs = []
    for (task, name), examples in sorted(by_task.items()):
        chosen = random.Random(seed).sample(examples, min(limits.queries, len(examples)))
        pool = _pool(data.local_pool(task, name, split), chosen, limits.documents, seed)
        for did in pool:
            if did not in row_of:
                row_of[did] = len(sources)
                sources.append((data.candidates[did], None))
        first = len(sources)
        sources += [(one.query, data.instructions[one.modalities][0]) for one in chosen]
        place = {did: number for number, did in enumerate(pool)}
        title = TASK_NAMES.get(task, str(task))
        pairs.append(
            Pair(
                name=f"{title} {name}" if names.count(task) > 1 else title,
                queries=tuple(range(first, len(sources))),
                documents=tuple(row_of[did] for did in pool),
                answers=tuple(
                    tuple(place[did] for did in one.positives if did in place) for one in chosen
                ),
                k=WIDER.get(name, RECALL_AT),
            )
        )
    encode = SourceEncoder(spec)
    sizes = tuple(
        (len(source.images), len(source.text or "") + len(instruction or ""))
        for source, instruction in sources
    )
    return HeldOut(sizes, lambda row: encode(*sources[row]), tuple(pairs))


def _pool(pool: Sequence[str], chosen: Sequence[Example], count: int, seed: int) -> list[str]:
    """The answers and others up to `count`: those first whose hash is small, in every task."""
    known = set(pool)
    answers = {did for one in chosen for did in one.positives if did in known}
    order = sorted(pool, key=lambda did: hashlib.sha256(f"{seed} {did}".encode()).digest())
    rest = [did for did in order if did not in answers][: max(0, count - len(answers))]
    wanted = answers | set(rest)
    return [did for did in dict.fromkeys(pool) if did in wanted]


def from_items(spec: InputSpec, items: Sequence[Item], instructions: dict[str, str]) -> HeldOut:
    """Every other item asks, with its modality's instruction; the others are the candidates.

    Nothing is labelled: what is compared is the order in which two models rank the same.
    """
    documents, asked = items[::2], items[1::2]
    encoded = [spec.encode(item) for item in documents]
    encoded += [
        spec.encode(Item(item.text, item.images, instructions.get(item.modality.value)))
        for item in asked
    ]
    pairs = []
    for mine in Modality:
        queries = tuple(
            row for row, item in enumerate(asked, len(documents)) if item.modality is mine
        )
        for theirs in Modality:
            found = tuple(row for row, item in enumerate(documents) if item.modality is theirs)
            if queries and found:
                pairs.append(Pair(f"{_name(mine)}->{_name(theirs)}", queries, found))
    sizes = tuple((len(item.images), item.length) for item in encoded)
    return HeldOut(sizes, encoded.__getitem__, tuple(pairs))


def _name(modality: Modality) -> str:
    return {Modality.TEXT: "t", Modality.IMAGE: "i", Modality.IMAGE_TEXT: "(i,t)"}[modality]
