"""The teacher's states: computed once, kept on disk, and the same however they came about."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from puma_edge.data import Dataset
from puma_edge.errors import PumaError
from puma_edge.model import Checkpoint
from puma_edge.pair_batches import Collator
from puma_edge.pairs import Pair, Pairs
from puma_edge.teacher_states import StateEncoder
from tests.checkpoints import tiny_checkpoint
from tests.text_pairs import eight_pairs, teacher_states


@pytest.fixture
def checkpoint(tokenizer: Tokenizer) -> Checkpoint:
    """A tiny random model."""
    return tiny_checkpoint(tokenizer, 3)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return eight_pairs(tmp_path)


def test_the_teachers_states_are_those_of_the_full_model(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path
) -> None:
    pairs = Pairs(data, data.train, seed=0)
    states = teacher_states(checkpoint, data, pairs.pairs, tmp_path)
    chosen = [pairs[5], pairs[0], pairs[3]]
    batch = Collator(checkpoint, data, teacher=states)(chosen)["batch"]
    assert batch.teacher is not None
    encoder = StateEncoder(checkpoint.model)
    sides = batch.join([torch.from_numpy(encoder.encode(part)) for part in batch.parts])
    for found, side in zip(batch.teacher, sides, strict=True):
        assert np.allclose(found.numpy(), side.numpy(), atol=1e-5)
    assert batch.modalities.tolist() == [0, 0, 0]


def test_what_many_pairs_have_in_common_is_computed_once(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path
) -> None:
    words = Pairs(data, data.train, seed=0).pairs
    pairs = [Pair(row, words[row % 3].example, words[row % 2].answer, "Find.") for row in range(9)]
    found = teacher_states(checkpoint, data, pairs, tmp_path)
    assert len(found.states) == 3 + 2
    whole = found.of(range(9))
    alone = [teacher_states(checkpoint, data, [pair], tmp_path).of([0])[:, 0] for pair in pairs]
    assert np.allclose(whole, np.stack(alone, axis=1), atol=1e-5)
    assert np.array_equal(found.of([7, 4]), whole[:, [7, 4]])


def test_states_are_computed_once_for_a_model_and_its_texts(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = Pairs(data, data.train, seed=0).pairs
    first = np.array(teacher_states(checkpoint, data, pairs, tmp_path).states)
    calls: list[int] = []
    encode = StateEncoder.encode
    monkeypatch.setattr(
        StateEncoder, "encode", lambda self, batch: calls.append(1) or encode(self, batch)
    )
    assert np.array_equal(teacher_states(checkpoint, data, pairs, tmp_path).states, first)
    assert calls == []
    teacher_states(checkpoint, data, pairs[1:], tmp_path)
    assert len(calls) == 1
    with torch.no_grad():
        next(checkpoint.model.parameters()).mul_(1.5)
    teacher_states(checkpoint, data, pairs, tmp_path)
    assert len(calls) == 2
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_interrupted_states_go_on_and_are_the_same(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puma_edge.teacher_states.BATCH", 3)
    monkeypatch.setattr("puma_edge.teacher_states.BATCHES_BETWEEN_MARKS", 2)
    pairs = Pairs(data, data.train, seed=0).pairs
    whole = np.array(teacher_states(checkpoint, data, pairs, tmp_path / "whole").states)
    seen: list[int] = []

    def stop(done: int) -> None:
        seen.append(done)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_states(checkpoint, data, pairs, tmp_path / "cut", stop)
    again: list[int] = []
    found = teacher_states(checkpoint, data, pairs, tmp_path / "cut", again.append)
    assert again[0] == 9  # two batches were sure, so the third comes first
    assert np.array_equal(found.states, whole)
    assert [path.suffix for path in (tmp_path / "cut").iterdir()] == [".npy"]


def test_states_of_other_data_are_computed_meanwhile(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path
) -> None:
    pairs = Pairs(data, data.train, seed=0).pairs

    def meanwhile(done: int) -> None:
        teacher_states(checkpoint, data, pairs[1:], tmp_path)
        with pytest.raises(PumaError, match="another run is writing"):
            teacher_states(checkpoint, data, pairs, tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_states(checkpoint, data, pairs, tmp_path, meanwhile)
    assert len(list(tmp_path.glob("????????????????.npy"))) == 1


def test_marks_of_states_that_are_gone_count_for_nothing(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puma_edge.teacher_states.BATCH", 3)
    pairs = Pairs(data, data.train, seed=0).pairs
    whole = np.array(teacher_states(checkpoint, data, pairs, tmp_path).states)
    (path,) = tmp_path.glob("*.npy")
    path.unlink()
    path.with_suffix(".done").write_text("4")  # a kill came before it was deleted

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_states(checkpoint, data, pairs, tmp_path, stop)
    assert np.array_equal(teacher_states(checkpoint, data, pairs, tmp_path).states, whole)


def test_a_full_disk_says_so_before_states_are_computed(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    pairs = Pairs(data, data.train, seed=0).pairs
    with pytest.raises(PumaError, match="no space left on the disk"):
        teacher_states(checkpoint, data, pairs, tmp_path)
    monkeypatch.undo()
    assert teacher_states(checkpoint, data, pairs, tmp_path).states.all()


def test_states_are_kept_apart_by_the_type_of_the_weights(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path
) -> None:
    pairs = Pairs(data, data.train, seed=0).pairs
    exact = np.array(teacher_states(checkpoint, data, pairs, tmp_path).states)
    torch.nn.Module.to(checkpoint.model, torch.bfloat16)
    rounded = np.array(teacher_states(checkpoint, data, pairs, tmp_path).states)
    assert 1e-4 < np.abs(rounded - exact).max() < 0.1
    assert len(list(tmp_path.glob("*.npy"))) == 2
