"""Image tokens computed once serve every later batch as if they were computed anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from puma_edge import frozen_vision
from puma_edge.frozen_vision import FrozenVision
from puma_edge.inputs import Batch, InputSpec, Item
from puma_edge.model import Checkpoint, image_tokens, vision_tokens
from puma_edge.torch_encoder import TorchEncoder
from tests.checkpoints import tiny_checkpoint


@pytest.fixture
def checkpoint(tokenizer: Tokenizer) -> Checkpoint:
    return tiny_checkpoint(tokenizer, 2)


def batch_of(spec: InputSpec, *which: int) -> Batch:
    """Items with one picture each; a number names a picture, each of another size."""
    items = []
    for number in which:
        draw = np.random.default_rng(number)
        shape = (56 + 28 * (number % 3), 84 + 28 * (number % 2), 3)
        items.append(Item("a fox", (draw.integers(0, 256, shape, np.uint8),)))
    return spec.collate([spec.encode(item) for item in items])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each run of the vision tower was given."""
    counts: list[int] = []

    def counting(model: Any, images: Any, sizes: Any) -> tuple[torch.Tensor, ...]:
        counts.append(len(images))
        return vision_tokens(model, images, sizes)

    monkeypatch.setattr(frozen_vision, "vision_tokens", counting)
    return counts


def test_tokens_are_the_towers_own_and_each_image_is_computed_once(
    checkpoint: Checkpoint, computed: list[int]
) -> None:
    vision, spec, model = FrozenVision(), checkpoint.spec, checkpoint.model
    for which in ((0, 1, 2), (2, 0), (3, 3, 1), (4,)):
        batch = batch_of(spec, *which)
        found = vision(model, batch)
        assert found is not None
        with torch.no_grad():
            assert torch.allclose(found, image_tokens(model, batch), atol=1e-5)
    assert computed == [3, 1, 1]


def test_with_no_room_left_tokens_are_right_and_computed_again(
    checkpoint: Checkpoint, computed: list[int]
) -> None:
    vision, batch = FrozenVision(room=0), batch_of(checkpoint.spec, 0, 1)
    for _ in range(2):
        found = vision(checkpoint.model, batch)
        assert found is not None
        assert torch.allclose(found, image_tokens(checkpoint.model, batch), atol=1e-5)
    assert computed == [2, 2]


def test_a_batch_without_images_has_no_tokens(checkpoint: Checkpoint) -> None:
    spec = checkpoint.spec
    batch = spec.collate([spec.encode(Item("a fox"))])
    assert FrozenVision()(checkpoint.model, batch) is None


def test_tokens_remembered_while_embedding_can_be_trained_on(checkpoint: Checkpoint) -> None:
    vision, batch = FrozenVision(), batch_of(checkpoint.spec, 0, 1)
    plain = TorchEncoder(checkpoint.model).encode(batch)
    assert np.allclose(TorchEncoder(checkpoint.model, vision).encode(batch), plain, atol=1e-6)
    tokens = vision(checkpoint.model, batch)
    assert tokens is not None
    weight = torch.ones(tokens.shape[1], requires_grad=True)
    torch.autograd.backward((tokens * weight).sum())
    assert weight.grad is not None


def test_tokens_are_the_same_within_autocast_and_hold_nothing_else(
    checkpoint: Checkpoint,
) -> None:
    batch = batch_of(checkpoint.spec, 0, 1, 2)
    plain = FrozenVision()(checkpoint.model, batch)
    vision = FrozenVision()
    with torch.autocast("cpu", torch.bfloat16):
        found = vision(checkpoint.model, batch)
    assert plain is not None
    assert found is not None
    assert torch.equal(found, plain)
    for tokens in vision._known.values():
        assert tokens.untyped_storage().nbytes() == tokens.nbytes
