"""Training pairs: queries, each with one of its answers drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset as TorchDataset

from puma_edge.data import Dataset, Example


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


def balanced(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """About `count` examples, as many of each task, so that every task has its share of the steps.

    Those of small tasks stand there several times, those of large ones once; no more than it takes
    to have all of the largest.
    """
    by_task: dict[int, list[Example]] = {}
    for one in random.Random(seed).sample(examples, len(examples)):
        by_task.setdefault(one.task, []).append(one)
    share = max(1, min(count // len(by_task), max(map(len, by_task.values()))))
    return [many[place % len(many)] for many in by_task.values() for place in range(share)]
