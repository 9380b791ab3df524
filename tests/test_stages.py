"""What a batch holds, and the bookkeeping of a stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from puma_edge.config import StageConfig, TrainConfig
from puma_edge.data import Dataset
from puma_edge.errors import PumaError
from puma_edge.frozen_vision import FrozenVision
from puma_edge.losses import other_answers
from puma_edge.model import Checkpoint, ret_states
from puma_edge.pair_batches import PART_TOKENS, Collator, PairBatch
from puma_edge.pairs import Pair, Pairs
from puma_edge.progress import Progress
from puma_edge.stage_trainer import CompleteMark
from puma_edge.stages import run_stage, total_steps
from tests.checkpoints import tiny_checkpoint
from tests.text_pairs import eight_pairs, teacher_states


@pytest.mark.parametrize(
    ("pairs", "stage", "expected"),
    [
        (100, StageConfig(batch=10, epochs=2), 20),
        (105, StageConfig(batch=10, epochs=2), 20),
        (100, StageConfig(batch=10, epochs=2, max_steps=7), 7),
        (100, StageConfig(batch=10, epochs=2, max_steps=70), 70),
        (5, StageConfig(batch=10, epochs=1), 1),
    ],
)
def test_steps_of_a_stage(pairs: int, stage: StageConfig, expected: int) -> None:
    assert total_steps(pairs, stage) == expected


@pytest.fixture
def checkpoint(tokenizer: Tokenizer) -> Checkpoint:
    """A tiny random model."""
    return tiny_checkpoint(tokenizer, 3)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return eight_pairs(tmp_path)


def test_a_batch_knows_which_of_its_answers_answer_other_queries(
    checkpoint: Checkpoint, data: Dataset
) -> None:
    examples = [
        replace(one, positives=tuple(f"1:{number}" for number in numbers))
        for one, numbers in zip(data.train, [(0,), (1, 0), (2, 3, 1), (3,)], strict=False)
    ]
    pairs = [Pair(row, one, one.positives[0], "Find it.") for row, one in enumerate(examples)]
    batch = Collator(checkpoint, data)(pairs)["batch"]
    expected = [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert other_answers(batch.positives, batch.answers).int().tolist() == expected


def test_pairs_with_one_answer_have_nothing_to_tell_apart(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path
) -> None:
    same = [replace(one, positives=("1:0",)) for one in data.train]
    stage = StageConfig(batch=8, epochs=3, lora_r=4)
    run_stage(
        checkpoint, data, Pairs(data, same, seed=0), stage, tmp_path / "stage",
        title="test", vision=FrozenVision(), config=TrainConfig(),
    )  # fmt: skip
    log = json.loads((tmp_path / "stage" / "log.json").read_text())
    assert [row["loss"] for row in log] == [0.0] * 3


@pytest.mark.parametrize("tokens", [1, 40, 200])
def test_parts_of_like_length_are_the_batch_in_one_piece(
    checkpoint: Checkpoint, data: Dataset, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    pairs = Pairs(data, data.train, seed=0).pairs
    pairs = [  # lengths that a sort has to move
        replace(pair, instruction=" ".join(["fox"] * (7 * number % 11)))
        for number, pair in enumerate(pairs)
    ]

    def states(part_tokens: int) -> tuple[PairBatch, list[torch.Tensor]]:
        monkeypatch.setitem(PART_TOKENS, "cpu", part_tokens)
        batch = Collator(checkpoint, data)(pairs)["batch"]
        sides = batch.join([ret_states(checkpoint.model, part) for part in batch.parts])
        return batch, list(sides)

    whole, expected = states(10**6)
    assert len(whole.parts) == 2
    batch, found = states(tokens)
    assert len(batch.parts) > 2
    for part in batch.parts:
        assert part.input_ids.size <= tokens or len(part.input_ids) == 1
    padded = sum((part.attention_mask == 0).sum() for part in batch.parts)
    assert padded < sum((part.attention_mask == 0).sum() for part in whole.parts)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_and_no_checkpoint_holds_it(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path
) -> None:
    stage = StageConfig(batch=8, epochs=25, lr=1e20, lora_r=4, lora_dropout=0.0)
    with pytest.raises(PumaError, match=r"the (loss|gradient) is nan at step \d+; lower lr"):
        run_stage(
            checkpoint, data, Pairs(data, data.train, seed=0), stage, tmp_path / "stage",
            title="test", vision=FrozenVision(), config=TrainConfig(save_steps=1),
        )  # fmt: skip
    assert not (tmp_path / "stage" / "log.json").exists()
    for path in (tmp_path / "stage").glob("checkpoint-*/adapter_model.safetensors"):
        assert all(torch.isfinite(values).all() for values in load_file(path).values())


def test_the_bar_is_closed_however_a_stage_ends(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Progress, "close", lambda self: closed.append("closed"))
    monkeypatch.setattr("puma_edge.stages.CompleteMark", lambda: Stopping(2, []))
    stage = StageConfig(batch=8, epochs=3, lora_r=4)
    with pytest.raises(KeyboardInterrupt):
        run_stage(
            checkpoint, data, Pairs(data, data.train, seed=0), stage, tmp_path / "stage",
            title="test", vision=FrozenVision(), config=TrainConfig(),
        )  # fmt: skip
    assert closed == ["closed"]


@pytest.mark.parametrize("distil", [True, False])
def test_a_stage_lowers_its_loss_and_touches_only_adapters(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path, distil: bool
) -> None:
    pairs = Pairs(data, data.train, seed=0)
    states = teacher_states(checkpoint, data, pairs.pairs, tmp_path) if distil else None
    before = {name: p.clone() for name, p in checkpoint.model.named_parameters()}
    stage = StageConfig(batch=8, epochs=25, lr=5e-3, lora_r=4, lora_alpha=8, lora_dropout=0.0)
    run_stage(
        checkpoint, data, pairs, stage, tmp_path / "stage",
        title="test", vision=FrozenVision(), config=TrainConfig(), teacher=states,
    )  # fmt: skip
    log = json.loads((tmp_path / "stage" / "log.json").read_text())
    assert len(log) == 25
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    after = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in checkpoint.model.named_parameters()
        if "lora_" not in name
    }
    assert all(torch.equal(after[name], values) for name, values in before.items())


def test_the_first_layer_learns_at_its_own_rate_and_the_others_rate_is_logged(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path
) -> None:
    stage = StageConfig(batch=8, epochs=4, lr=1e-3, first_layer_lr=1e-12, lora_r=4, lora_dropout=0)
    peft = run_stage(
        checkpoint, data, Pairs(data, data.train, seed=0), stage, tmp_path / "stage",
        title="test", vision=FrozenVision(), config=TrainConfig(),
    )  # fmt: skip
    # An adapter's second half starts at zero, so what it holds is what was learnt.
    learnt = {name: one.abs().max() for name, one in peft.named_parameters() if "lora_B" in name}
    for name, most in learnt.items():
        assert 0 < most < 1e-10 if ".layers.0." in name else most > 1e-5
    log = json.loads((tmp_path / "stage" / "log.json").read_text())
    assert max(row["learning_rate"] for row in log) == pytest.approx(1e-3)


class Stopping(CompleteMark):
    """Counts steps, and raises at the end of one, as Ctrl-C would."""

    def __init__(self, step: int, counted: list[int]) -> None:
        """Choose the step, 0 for none."""
        self.step, self.counted = step, counted

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Count, and stop there."""
        self.counted.append(state.global_step)
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("stop", "first"), [(1, 1), (4, 3), (5, 5), (9, 9)])
@pytest.mark.parametrize("distil", [True, False])
def test_a_stage_that_was_cut_off_has_the_losses_of_an_unbroken_one(
    tokenizer: Tokenizer,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
    first: int,
    distil: bool,
) -> None:
    stage = StageConfig(batch=4, epochs=5, lr=5e-3, lora_r=4, lora_alpha=8, lora_dropout=0.2)
    pairs = Pairs(data, data.train, seed=0)

    def run(folder: Path) -> list[float]:
        checkpoint = tiny_checkpoint(tokenizer, 3)
        states = teacher_states(checkpoint, data, pairs.pairs, tmp_path) if distil else None
        run_stage(
            checkpoint, data, pairs, stage, folder, title="test",
            config=TrainConfig(save_steps=2), vision=FrozenVision(), teacher=states,
        )  # fmt: skip
        return [row["loss"] for row in json.loads((folder / "log.json").read_text())]

    expected = run(tmp_path / "whole")
    counted: list[int] = []
    monkeypatch.setattr("puma_edge.stages.CompleteMark", lambda: Stopping(stop, counted))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    assert counted == list(range(1, stop + 1))
    counted.clear()
    stop = 0
    assert run(tmp_path / "cut") == pytest.approx(expected, rel=1e-5)
    # From the last checkpoint before the step that was stopped at.
    assert counted == list(range(first, 11))
