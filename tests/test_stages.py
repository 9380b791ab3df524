"""Batches in which no pair answers another, and the bookkeeping of a stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from puma_edge.config import StageConfig, TrainConfig
from puma_edge.data import Dataset, Example, Source
from puma_edge.frozen_vision import FrozenVision
from puma_edge.model import Card, Checkpoint
from puma_edge.pairs import Collator, DistinctSampler, Pair, Pairs
from puma_edge.prompts import IMAGE_PAD, Modality
from puma_edge.stages import StateEncoder, run_stage, total_steps, with_teacher
from tests.models import tiny_model


def pair(number: int, positives: tuple[str, ...]) -> Pair:
    """A pair of words."""
    example = Example(f"1:{number}", 1, "1", Source(f"q{number}"), positives, Modality.TEXT)
    return Pair(example, positives[0], "Find it.")


@given(
    st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=80),
    st.integers(1, 12),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_every_pair_is_seen_once(answers: list[set[int]], batch: int, seed: int) -> None:
    pairs = [pair(i, tuple(f"1:{one}" for one in sorted(many))) for i, many in enumerate(answers)]
    order = list(DistinctSampler(pairs, batch, seed))
    assert sorted(order) == list(range(len(pairs)))
    assert order == list(DistinctSampler(pairs, batch, seed))


@given(st.integers(2, 6), st.integers(0, 99))
@settings(deadline=None)
def test_no_batch_holds_two_answers_to_one_query(copies: int, seed: int) -> None:
    # 24 answers, each asked for `copies` times, in batches of 8: full batches always exist
    # until the very end.
    pairs = [pair(i, (f"1:{i % 24}",)) for i in range(24 * copies)]
    order = list(DistinctSampler(pairs, 8, seed))
    for start in range(0, len(order) - 24, 8):
        answers = [pairs[index].answer for index in order[start : start + 8]]
        assert len(set(answers)) == len(answers)


@pytest.mark.parametrize(
    ("pairs", "stage", "expected"),
    [
        (100, StageConfig(batch=10, epochs=2), 20),
        (105, StageConfig(batch=10, epochs=2), 20),
        (100, StageConfig(batch=10, epochs=2, max_steps=7), 7),
        (5, StageConfig(batch=10, epochs=1), 1),
    ],
)
def test_steps_of_a_stage(pairs: int, stage: StageConfig, expected: int) -> None:
    assert total_steps(pairs, stage) == expected


@pytest.fixture
def checkpoint(tokenizer: Tokenizer) -> Checkpoint:
    """A tiny random model."""
    pad = tokenizer.token_to_id(IMAGE_PAD)
    model = tiny_model(layers=3, vocabulary=tokenizer.get_vocab_size() + 1, image_token_id=pad)
    return Checkpoint(model, tokenizer, Card("tiny", (0, 1, 2), 3))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Eight text-to-text pairs."""
    words = ["fox", "dog", "lazy", "brown", "jump", "forest", "street", "image"]
    examples = [
        Example(f"1:{i}", 1, "1", Source(word), (f"1:{i}",), Modality.TEXT)
        for i, word in enumerate(words)
    ]
    candidates = {f"1:{i}": Source(f"the {word}") for i, word in enumerate(words)}
    instructions = {("text", "text", "1"): ["Find the text."]}
    return Dataset(
        tmp_path,
        {"train": examples, "val": [], "test": []},
        {1: list(candidates)},
        candidates,
        instructions,
    )


def test_the_teachers_states_are_those_of_the_full_model(
    checkpoint: Checkpoint, data: Dataset
) -> None:
    pairs = Pairs(data, data.train, seed=0)
    with_teacher(pairs, checkpoint, data, lambda done: None)
    batch = Collator(checkpoint, data)(pairs.pairs[:3])["batch"]
    assert batch.teacher_queries is not None
    expected = StateEncoder(checkpoint.model).encode(batch.queries[0])
    assert np.allclose(batch.teacher_queries.numpy(), expected, atol=1e-5)
    assert batch.modalities.tolist() == [0, 0, 0]


@pytest.mark.parametrize("distil", [True, False])
def test_a_stage_lowers_its_loss_and_touches_only_adapters(
    checkpoint: Checkpoint, data: Dataset, tmp_path: Path, distil: bool
) -> None:
    pairs = Pairs(data, data.train, seed=0)
    with_teacher(pairs, checkpoint, data, lambda done: None)
    before = {name: p.clone() for name, p in checkpoint.model.named_parameters()}
    stage = StageConfig(batch=8, epochs=25, lr=5e-3, lora_r=4, lora_alpha=8, lora_dropout=0.0)
    run_stage(
        checkpoint, data, pairs, stage, tmp_path / "stage",
        title="test", distil=distil, vision=FrozenVision(), config=TrainConfig(),
    )  # fmt: skip
    import json

    log = json.loads((tmp_path / "stage" / "log.json").read_text())
    assert len(log) == 25
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    after = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in checkpoint.model.named_parameters()
        if "lora_" not in name
    }
    assert all(torch.equal(after[name], values) for name, values in before.items())
