"""A step's batch: the arrays of pairs, in parts of like length, and who answers whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from puma_edge.data import Dataset, SourceEncoder
from puma_edge.inputs import Batch, Encoded
from puma_edge.model import Checkpoint
from puma_edge.pairs import Pair
from puma_edge.prompts import Modality
from puma_edge.teacher_states import TeacherStates

# A part's activations stay in a CPU's cache; a GPU wants enough of them to be busy.
PART_TOKENS = {"cpu": 1024, "cuda": 16384}
NO_ANSWER = -1
MODALITIES = {modality: number for number, modality in enumerate(Modality)}


@dataclass(frozen=True)
class Side:
    """One side of a batch, sorted by length into parts, so that little is spent on padding.

    Attributes:
        parts: batches of items of like length.
        places: [B], where each item's state is once the states of the parts are joined.
    """

    parts: tuple[Batch, ...]
    places: Tensor

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """The states [B, d] of all parts, in the order of the pairs."""
        joined = torch.cat(list(states))
        return joined[self.places.to(joined.device)]


@dataclass(frozen=True)
class PairBatch:
    """What one step sees.

    Attributes:
        queries: one side.
        candidates: the other.
        modalities: [B], those of the answers.
        answers: [B], their numbers.
        positives: [B, most], the numbers of all that answer a query, padded with `NO_ANSWER`.
        teacher: the teacher's states [2, B, d], where the loss needs them.
        cached: the parts go through the model one at a time, with gradient caching.
    """

    queries: Side
    candidates: Side
    modalities: Tensor
    answers: Tensor
    positives: Tensor
    teacher: Tensor | None = None
    cached: bool = False

    @property
    def parts(self) -> tuple[Batch, ...]:
        """Those of the queries, then those of the candidates."""
        return self.queries.parts + self.candidates.parts

    def join(self, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The states [B, d] of queries and of candidates, given those of `parts`."""
        half = len(self.queries.parts)
        return self.queries.join(states[:half]), self.candidates.join(states[half:])


class Collator:
    """Makes a `PairBatch` of pairs."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: Dataset,
        *,
        part: int = 0,
        teacher: TeacherStates | None = None,
    ) -> None:
        """Use the checkpoint's own preprocessing.

        Args:
            checkpoint: the model that is trained.
            data: where the candidates are.
            part: pairs that are held at once, with gradient caching; 0 for all of them.
            teacher: the teacher's states of the pairs, where the loss needs them.
        """
        self._spec = checkpoint.spec
        self._part = part
        self._teacher = teacher
        self._load = SourceEncoder(self._spec)
        self._candidates = data.candidates

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, PairBatch]:
        """Tokenise, cut and pad both sides."""
        queries = self._load.many([(pair.example.query, pair.instruction) for pair in pairs])
        candidates = self._load.many([(self._candidates[pair.answer], None) for pair in pairs])
        states = None
        if self._teacher is not None:
            states = torch.from_numpy(self._teacher.of([pair.row for pair in pairs]))
        batch = PairBatch(
            queries=self._side(queries),
            candidates=self._side(candidates),
            modalities=torch.tensor([MODALITIES[pair.example.target] for pair in pairs]),
            answers=torch.tensor([number(pair.answer) for pair in pairs]),
            positives=pad_sequence(
                [torch.tensor([*map(number, pair.example.positives)]) for pair in pairs],
                batch_first=True,
                padding_value=NO_ANSWER,
            ),
            teacher=states,
            cached=bool(self._part),
        )
        return {"batch": batch}

    def _side(self, items: Sequence[Encoded]) -> Side:
        order = sorted(range(len(items)), key=lambda place: items[place].length)
        # Ranks exchange buffers with every cached part: all must have the same number of them.
        parts = _slices(order, self._part) if self._part else _by_tokens(order, items)
        return Side(
            tuple(self._spec.collate([items[place] for place in part]) for part in parts),
            torch.tensor(order).argsort(),
        )


def number(did: str) -> int:
    """A candidate's number, the same on every rank: 63 bits of its id's hash."""
    return int.from_bytes(blake2b(did.encode(), digest_size=8).digest(), "big") >> 1


def _slices(order: Sequence[int], size: int) -> list[Sequence[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _by_tokens(order: Sequence[int], items: Sequence[Encoded]) -> list[Sequence[int]]:
    """Cut what is sorted by length into parts of `PART_TOKENS`, padding included."""
    most = PART_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]
    parts: list[Sequence[int]] = []
    start = 0
    for end, place in enumerate(order):
        if (end + 1 - start) * items[place].length > most and end > start:
            parts.append(order[start:end])
            start = end
    return [*parts, order[start:]]
