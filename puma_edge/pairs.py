"""Training pairs: answers drawn, batches in which no pair answers another, arrays made of both."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from puma_edge.data import Dataset, Example, SourceEncoder
from puma_edge.inputs import Batch, Encoded, Float32
from puma_edge.model import Checkpoint
from puma_edge.prompts import Modality

MODALITIES = {modality: number for number, modality in enumerate(Modality)}


@dataclass(frozen=True)
class Pair:
    """A training example with one of its answers drawn.

    Attributes:
        row: its number among its stage's pairs, and in the teacher's states.
        example: the query.
        answer: the id of one of its right candidates.
        instruction: the query's instruction.
    """

    row: int
    example: Example
    answer: str
    instruction: str


@dataclass(frozen=True)
class PairBatch:
    """What one step sees: both sides, the answers' modalities [B], teacher's states [2, B, d].

    Each side comes in parts that fit in memory one at a time: one, if the whole does.
    """

    queries: tuple[Batch, ...]
    candidates: tuple[Batch, ...]
    modalities: Tensor
    teacher: Tensor | None


class Pairs(TorchDataset[Pair]):
    """Training pairs, answers and instructions drawn once by seed."""

    def __init__(self, data: Dataset, examples: Sequence[Example], seed: int) -> None:
        """Draw for each example one answer and one of its task's instructions."""
        draw = random.Random(seed)
        self.pairs = [
            Pair(
                row,
                one,
                draw.choice(one.positives),
                draw.choice(data.instructions[one.modalities]),
            )
            for row, one in enumerate(examples)
        ]

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        """One pair."""
        return self.pairs[index]


class DistinctSampler(Sampler[int]):
    """A seeded shuffle in which no batch holds two pairs that answer each other's query.

    Both losses take every other candidate of a batch for wrong. A pair that would clash is put off
    to the next batch that can take it.
    """

    def __init__(self, pairs: Sequence[Pair], batch: int, seed: int) -> None:
        """Order `pairs` for batches of this global size."""
        order = list(range(len(pairs)))
        random.Random(seed).shuffle(order)
        self._order = list(_spread(pairs, order, batch))

    def __iter__(self) -> Iterator[int]:
        """Indices in order."""
        return iter(self._order)

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self._order)


def _spread(pairs: Sequence[Pair], order: list[int], batch: int) -> Iterator[int]:
    waiting: list[int] = []
    source = iter(order)
    left = len(order)
    while left:
        taken: set[str] = set()
        chosen: list[int] = []
        put_off: list[int] = []
        for index in _then(waiting, source):
            positives = pairs[index].example.positives
            if taken.isdisjoint(positives):
                taken.update(positives)
                chosen.append(index)
            else:
                put_off.append(index)
            # With few distinct answers a full batch may not exist: do not search for ever.
            if len(chosen) == batch or len(put_off) > 8 * batch:
                break
        missing = batch - len(chosen)
        chosen += put_off[:missing]
        waiting = put_off[missing:] + waiting
        left -= len(chosen)
        yield from chosen


def _then(waiting: list[int], source: Iterator[int]) -> Iterator[int]:
    while waiting:
        yield waiting.pop(0)
    yield from source


class Collator:
    """Makes a `PairBatch` of pairs."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: Dataset,
        *,
        part: int = 0,
        teacher: Float32 | None = None,
    ) -> None:
        """Use the checkpoint's own preprocessing.

        Args:
            checkpoint: the model that is trained.
            data: where the candidates are.
            part: pairs of a part at most, 0 for all in one.
            teacher: the teacher's states [2, pairs, d], where the loss needs them.
        """
        self._spec = checkpoint.spec
        self._part = part
        self._teacher = teacher
        self._load = SourceEncoder(self._spec)
        self._candidates = data.candidates

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, PairBatch]:
        """Tokenise, cut and pad both sides."""
        queries = [self._load(pair.example.query, pair.instruction) for pair in pairs]
        candidates = [self._load(self._candidates[pair.answer]) for pair in pairs]
        rows = [pair.row for pair in pairs]
        states = None if self._teacher is None else torch.from_numpy(self._teacher[:, rows])
        batch = PairBatch(
            queries=self._parts(queries),
            candidates=self._parts(candidates),
            modalities=torch.tensor([MODALITIES[pair.example.target] for pair in pairs]),
            teacher=states,
        )
        return {"batch": batch}

    def _parts(self, items: Sequence[Encoded]) -> tuple[Batch, ...]:
        size = self._part or len(items)
        starts = range(0, len(items), size)
        return tuple(self._spec.collate(items[start : start + size]) for start in starts)
