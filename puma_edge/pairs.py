"""Training pairs: queries, each with one of its answers drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch.utils.data import Dataset as TorchDataset

from puma_edge.data import Dataset, Example, Source
from puma_edge.prompts import Modality

MIXED = 0.5  # of the texts that `recombined` makes


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


def recombined(data: Dataset, count: int, seed: int) -> list[Example]:
    """`count` queries that nobody asked, as many of each task, each beside any document.

    For losses that read no label: the teacher's states of these are as good a lesson as of others,
    and there is no end of them. A query of a task has the picture of any training query, and the
    words of any of the same modality, every second time mixed with another's.
    """
    draw = random.Random(seed)
    tasks: dict[int, list[Example]] = {}
    pictures, words = dict[Path, None](), dict[Modality, dict[str, None]]()  # in order, each once
    for one in data.train:
        tasks.setdefault(one.task, []).append(one)
        pictures |= dict.fromkeys(one.query.images)
        words.setdefault(one.query.modality, {}).update({one.query.text or "": None})
    documents = list(dict.fromkeys(did for pool in data.pools.values() for did in pool))
    shown, said = list(pictures), {modality: list(many) for modality, many in words.items()}

    def words_like(query: Source) -> str | None:
        if not query.text:
            return None
        known = said[query.modality]
        text = draw.choice(known)
        if draw.random() < MIXED and text.split():
            both = [*text.split(), *draw.choice(known).split()]
            text = " ".join(draw.sample(both, min(len(both), max(1, len(text.split())))))
        return text

    found = []
    for place in range(count):
        like = draw.choice(list(tasks.values())[place % len(tasks)])
        images = tuple(draw.choice(shown) for _ in like.query.images)
        query = Source(words_like(like.query), images)
        found.append(replace(like, query=query, positives=(draw.choice(documents),)))
    return found
