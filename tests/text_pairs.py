"""Eight text-to-text pairs, and a teacher's states of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puma_edge.data import Dataset, Example, Source
from puma_edge.frozen_vision import FrozenVision
from puma_edge.model import Checkpoint
from puma_edge.pairs import Pair
from puma_edge.prompts import Modality
from puma_edge.teacher_states import TeacherStates, distinct_sources
from puma_edge.teacher_states import teacher_states as all_states


def eight_pairs(folder: Path) -> Dataset:
    """A data set of them."""
    words = ["fox", "dog", "lazy", "brown", "jump", "forest", "street", "image"]
    examples = [
        Example(f"1:{i}", 1, "1", Source(word), (f"1:{i}",), Modality.TEXT)
        for i, word in enumerate(words)
    ]
    candidates = {f"1:{i}": Source(f"the {word}") for i, word in enumerate(words)}
    instructions = {("text", "text", "1"): ["Find the text."]}
    return Dataset(
        folder,
        {"train": examples, "val": [], "test": []},
        {1: list(candidates)},
        candidates,
        instructions,
    )


def teacher_states(
    checkpoint: Checkpoint, data: Dataset, pairs: Sequence[Pair], folder: Path, *progress: Any
) -> TeacherStates:
    """The states of these pairs."""
    return all_states(checkpoint, distinct_sources(data, pairs), folder, FrozenVision(), *progress)
