"""Large batches: in parts with cached gradients, and over ranks, both as if in one piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from puma_edge.config import StageConfig, TrainConfig
from puma_edge.data import Dataset, Example, Source
from puma_edge.frozen_vision import FrozenVision
from puma_edge.grad_cache import cached_backward
from puma_edge.inputs import Batch, Item
from puma_edge.losses import distillation_loss, mac_loss, other_answers
from puma_edge.model import Checkpoint
from puma_edge.pairs import Pairs
from puma_edge.prompts import Modality
from puma_edge.stage_trainer import StateModel
from puma_edge.stages import add_lora, run_stage
from tests.checkpoints import tiny_checkpoint

PAIRS = 12
TAU_HARD = 0.024
Loss = Callable[[Tensor, Tensor, slice], Tensor]


def make_model(checkpoint: Checkpoint, dropout: float) -> StateModel:
    """It with adapters that do something from the first step on."""
    stage = StageConfig(batch=PAIRS, lora_r=4, lora_alpha=8, lora_dropout=dropout)
    peft = add_lora(checkpoint, stage, seed=0)
    torch.manual_seed(1)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return StateModel(peft, FrozenVision()).train()


def side(checkpoint: Checkpoint, rows: Sequence[int], salt: int) -> Batch:
    """Texts, pictures and both, by turns."""
    words = ["fox", "dog", "lazy", "brown", "jump", "forest", "street", "image"]
    items = []
    for row in rows:
        draw = np.random.default_rng(100 * salt + row)
        picture = draw.integers(0, 256, (56, 56 + 28 * (row % 2), 3), np.uint8)
        text = " ".join(draw.choice(words, 1 + row % 5)) if row % 3 != 1 else None
        items.append(Item(text, (picture,) if row % 3 else ()))
    return checkpoint.spec.collate([checkpoint.spec.encode(item) for item in items])


def also_right(rows: slice) -> Tensor:
    """Of twelve pairs each two have one answer, half a batch apart: on two ranks, one on each."""
    answers = torch.arange(PAIRS)[rows] % (PAIRS // 2)
    return other_answers(answers[:, None], answers)


def distil(queries: Tensor, candidates: Tensor, rows: slice) -> Tensor:
    """Stage 1's loss against a teacher of random states."""
    draw = torch.Generator().manual_seed(5)
    teacher = torch.randn(2, PAIRS, queries.shape[1], generator=draw)
    return distillation_loss(
        queries, candidates, teacher[0, rows], teacher[1, rows], also_right(rows)
    )


def contrast(queries: Tensor, candidates: Tensor, rows: slice) -> Tensor:
    """Stage 2's loss with three modalities."""
    modalities = torch.arange(PAIRS)[rows] % 3
    return mac_loss(queries, candidates, modalities, TAU_HARD, also_right=also_right(rows))


LOSSES: dict[str, Loss] = {"distil": distil, "contrast": contrast}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Of every adapter."""
    return {
        name.removeprefix("module."): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def parts_of(checkpoint: Checkpoint, size: int) -> list[Batch]:
    """Both sides in parts of `size` pairs."""
    cuts = [range(PAIRS)[start : start + size] for start in range(0, PAIRS, size)]
    return [side(checkpoint, rows, salt) for salt in (0, 1) for rows in cuts]


def whole_loss(loss: Loss, states: Sequence[Tensor]) -> Tensor:
    """The loss of both sides' parts."""
    half = len(states) // 2
    return loss(torch.cat(list(states[:half])), torch.cat(list(states[half:])), slice(None))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1, 5, 6, 12])
def test_cached_gradients_are_those_of_the_whole_batch(
    tokenizer: Tokenizer, name: str, size: int
) -> None:
    checkpoint = tiny_checkpoint(tokenizer, 2)
    model = make_model(checkpoint, dropout=0.0)
    whole = whole_loss(LOSSES[name], model(*parts_of(checkpoint, PAIRS)))
    torch.autograd.backward(whole)
    expected = {key: value.clone() for key, value in gradients(model).items()}
    model.zero_grad()
    steps: list[str] = []

    @contextmanager
    def before_last() -> Iterator[None]:
        steps.append("enter")
        yield
        steps.append("leave")

    def run(part: Batch) -> Tensor:
        if torch.is_grad_enabled():
            steps.append("run")
        found: Tensor = model(part)[0]
        return found

    parts = parts_of(checkpoint, size)
    found = cached_backward(
        parts,
        run,
        partial(whole_loss, LOSSES[name]),
        torch.autograd.backward,
        before_last,
    )
    assert torch.allclose(found, whole.detach(), atol=1e-5)
    # Wrappers for several ranks decide in the forward pass whether gradients are exchanged.
    assert steps == ["enter", "run", "leave"] * (len(parts) - 1) + ["run"]
    assert expected.keys() == gradients(model).keys()
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for key, value in gradients(model).items():
        assert torch.allclose(value, expected[key], atol=1e-5), key


def test_dropout_falls_alike_in_both_passes(tokenizer: Tokenizer) -> None:
    checkpoint = tiny_checkpoint(tokenizer, 2)
    model = make_model(checkpoint, dropout=0.3)
    parts = parts_of(checkpoint, 4)
    torch.manual_seed(7)
    torch.autograd.backward(whole_loss(contrast, [model(part)[0] for part in parts]))
    expected = {key: value.clone() for key, value in gradients(model).items()}
    model.zero_grad()
    torch.manual_seed(7)
    cached_backward(
        parts,
        lambda part: model(part)[0],
        partial(whole_loss, contrast),
        torch.autograd.backward,
    )
    for key, value in gradients(model).items():
        assert torch.allclose(value, expected[key], atol=1e-5), key


def rank_gradients(rank: int, tokenizer_text: str, folder: str) -> None:
    """One of two ranks: half of the batch, gradients averaged by PyTorch's own wrapper."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    checkpoint = tiny_checkpoint(Tokenizer.from_str(tokenizer_text), 2)
    rows = range(PAIRS)[rank * PAIRS // 2 : (rank + 1) * PAIRS // 2]
    for name, loss in LOSSES.items():
        model = DistributedDataParallel(make_model(checkpoint, dropout=0.0))
        states = model(side(checkpoint, rows, 0), side(checkpoint, rows, 1))
        value = loss(*states, slice(rows.start, rows.stop))
        torch.autograd.backward(value)
        found = {"loss": value.detach(), **gradients(model)}
        torch.save(found, f"{folder}/{name}-{rank}.pt")
        checkpoint = tiny_checkpoint(Tokenizer.from_str(tokenizer_text), 2)
    distributed.destroy_process_group()


def test_two_ranks_are_one_with_twice_the_batch(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spawn: Any = multiprocessing.spawn  # type: ignore[attr-defined]
    spawn(rank_gradients, args=(tokenizer.to_str(), str(tmp_path)), nprocs=2)
    for name, loss in LOSSES.items():
        checkpoint = tiny_checkpoint(tokenizer, 2)
        model = make_model(checkpoint, dropout=0.0)
        whole = whole_loss(loss, model(*parts_of(checkpoint, PAIRS)))
        torch.autograd.backward(whole)
        ranks = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        mean = (ranks[0].pop("loss") + ranks[1].pop("loss")) / 2
        assert torch.allclose(mean, whole.detach(), atol=1e-5)
        for key, value in gradients(model).items():
            for one in ranks:
                assert torch.allclose(one[key], value, atol=1e-5), (name, key)


def test_a_stage_in_parts_has_the_losses_of_one_in_one_piece(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    words = ["fox", "dog", "lazy", "brown", "jump", "forest", "street", "image"]
    examples = [
        Example(f"1:{i}", 1, "1", Source(word), (f"1:{i}",), Modality.TEXT)
        for i, word in enumerate(words)
    ]
    candidates = {f"1:{i}": Source(f"the {word}") for i, word in enumerate(words)}
    instructions = {("text", "text", "1"): ["Find the text."]}
    splits = {"train": examples, "val": [], "test": []}
    data = Dataset(tmp_path, splits, {1: list(candidates)}, candidates, instructions)
    stage = StageConfig(batch=8, epochs=6, lr=5e-3, lora_r=4, lora_alpha=8, lora_dropout=0.0)
    logs = []
    for size in (0, 3):
        run_stage(
            tiny_checkpoint(tokenizer, 2), data, Pairs(data, examples, seed=0), stage,
            tmp_path / str(size), title="test", vision=FrozenVision(),
            config=TrainConfig(device_batch=size),
        )  # fmt: skip
        rows = json.loads((tmp_path / str(size) / "log.json").read_text())
        logs.append([row["loss"] for row in rows])
    assert len(logs[0]) == 6
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
