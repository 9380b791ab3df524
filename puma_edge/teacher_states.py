"""The teacher's states at `[RET]`, computed once and kept on disk.

The teacher is frozen, so what it says of a text or a picture never changes: stage 1 needs none of
its layers while it trains, and the next run on the same data computes none of them again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from puma_edge.data import Dataset, Source, SourceEncoder
from puma_edge.errors import InputError
from puma_edge.frozen_vision import FrozenVision
from puma_edge.identity import model_id
from puma_edge.inputs import Batch, Float32
from puma_edge.model import Checkpoint, ret_states
from puma_edge.pairs import Pair
from puma_edge.runtimes.files import disk_errors, locked, replacing
from puma_edge.torch_encoder import TorchEncoder

BATCH = 64
BATCHES_BETWEEN_MARKS = 20  # after so many batches, what is done outlives a kill


@dataclass(frozen=True)
class Sources:
    """What stage 1's pairs ask and answer with, each once.

    Attributes:
        all: texts and images with their instruction, None for a candidate's.
        rows: [2, pairs], which of them is a pair's query, and which its candidate.
    """

    all: list[tuple[Source, str | None]]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class TeacherStates:
    """The teacher's states of stage 1's pairs.

    Attributes:
        states: [sources, d], memory-mapped.
        rows: as `Sources.rows`.
    """

    states: Float32
    rows: NDArray[np.int64]

    def of(self, pairs: Sequence[int]) -> Float32:
        """Those of some pairs' queries and candidates [2, B, d]."""
        found: Float32 = self.states[self.rows[:, list(pairs)]]
        return found


def distinct_sources(data: Dataset, pairs: Sequence[Pair]) -> Sources:
    """The queries and candidates of `pairs`: many pairs have an answer in common."""
    places: dict[tuple[Source, str | None], int] = {}
    rows = [
        [places.setdefault(source, len(places)) for source in side]
        for side in (
            [(pair.example.query, pair.instruction) for pair in pairs],
            [(data.candidates[pair.answer], None) for pair in pairs],
        )
    ]
    return Sources(list(places), np.array(rows))


def teacher_states(
    teacher: Checkpoint,
    sources: Sources,
    folder: Path,
    vision: FrozenVision,
    progress: Callable[[int], None] = lambda done: None,
) -> TeacherStates:
    """The states of all sources, memory-mapped from `folder`.

    The file is named by model, preprocessing and content; an interrupted computation goes on where
    it was.

    Args:
        teacher: the full model.
        sources: what stage 1 trains on.
        folder: where the states are kept.
        vision: remembers image tokens.
        progress: told how many sources are done.
    """
    path = folder / f"{_key(teacher, sources.all)}.npy"
    if not path.is_file():
        lock = path.with_suffix(".lock")  # its own: runs on other data need not wait
        with locked(folder, path, lock.name), disk_errors(path):
            _compute(teacher, sources.all, path, vision, progress)
            lock.unlink()
    progress(len(sources.all))
    return TeacherStates(np.load(path, mmap_mode="r", allow_pickle=False), sources.rows)


def _key(teacher: Checkpoint, sources: list[tuple[Source, str | None]]) -> str:
    # The identity is the same in every precision, the states are not.
    dtype = next(iter(teacher.model.parameters())).dtype
    digest = hashlib.sha256(f"{model_id(teacher)} {dtype}".encode())
    for source, instruction in sources:
        digest.update(repr((source.text, instruction)).encode())
        for image in source.images:
            digest.update(_content(image))
    return digest.hexdigest()[:16]


def _content(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {image} ({error.strerror}); put it there, or take its line out"
        ) from None


def _compute(
    teacher: Checkpoint,
    sources: list[tuple[Source, str | None]],
    path: Path,
    vision: FrozenVision,
    progress: Callable[[int], None],
) -> None:
    """Fill `path`; the file of marks beside it says how many batches of it are sure."""
    part, marks = path.with_suffix(".part.npy"), path.with_suffix(".done")
    shape = (len(sources), teacher.dimension)
    sure = int(marks.read_text()) if marks.is_file() and part.is_file() else 0
    if not sure:
        marks.unlink(missing_ok=True)  # of a file that is gone
    mode = "r+" if sure else "w+"
    states = np.lib.format.open_memmap(part, mode=mode, dtype=np.float32, shape=shape)
    with part.open("r+b") as file:
        # A disk that is full says so here; where a mapped page finds no room, the process is ended.
        os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    encoder = StateEncoder(teacher.model, vision)
    load, spec = SourceEncoder(teacher.spec), teacher.spec
    for number, rows in enumerate(_batches(sources)):
        if number < sure:
            continue
        states[rows] = encoder.encode(spec.collate(load.many([sources[row] for row in rows])))
        progress(min((number + 1) * BATCH, len(sources)))
        if (number + 1) % BATCHES_BETWEEN_MARKS == 0:
            states.flush()
            with replacing(marks) as file:
                file.write(str(number + 1).encode())
    states.flush()
    part.rename(path)
    marks.unlink(missing_ok=True)


def _batches(sources: list[tuple[Source, str | None]]) -> Iterator[list[int]]:
    """Rows of alike length, so that little is spent on padding."""
    lengths = [
        (len(source.images), len(source.text or "") + len(instruction or ""))
        for source, instruction in sources
    ]
    order = sorted(range(len(sources)), key=lengths.__getitem__)
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


class StateEncoder(TorchEncoder):
    """The states themselves, not normalised: what distillation compares."""

    def encode(self, batch: Batch) -> Float32:
        """States at `[RET]` after the final norm [B, d]."""
        self._model.eval()
        with torch.no_grad():
            tokens = self._vision(self._model, batch) if self._vision else None
            result: Float32 = ret_states(self._model, batch, tokens).float().cpu().numpy()
        return result
