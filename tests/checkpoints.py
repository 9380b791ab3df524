"""Tiny checkpoints, a batch for them, and what transformers' own forward makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from puma_edge.backbones import Family, backbone_of, tower_of
from puma_edge.card import Card
from puma_edge.images import normalize
from puma_edge.inputs import Batch, InputSpec, Item
from puma_edge.model import Checkpoint
from puma_edge.prompts import IMAGE_PAD
from tests.families import LAYERS, tiny
from tests.models import tiny_model


def checkpoint_of(family: Family, tokenizer: Tokenizer) -> Checkpoint:
    """A model of any family whose vocabulary is the test tokenizer's."""
    pad = tokenizer.token_to_id(IMAGE_PAD)
    model = tiny(family, tokenizer.get_vocab_size() + 3, pad)
    backbone = backbone_of(family)
    layers = tuple(range(LAYERS))
    card = Card("tiny", layers, LAYERS, limits=backbone.limits, prompt=backbone.prompt)
    return Checkpoint(model, tokenizer, card)


def tiny_checkpoint(tokenizer: Tokenizer, layers: int) -> Checkpoint:
    """A Qwen2-VL of so many layers, the same each time, with the test tokenizer's vocabulary."""
    pad = tokenizer.token_to_id(IMAGE_PAD)
    model = tiny_model(layers=layers, vocabulary=tokenizer.get_vocab_size() + 3, image_token_id=pad)
    return Checkpoint(model, tokenizer, Card("tiny", tuple(range(layers)), layers))


def mixed_batch(spec: InputSpec) -> Batch:
    """Text, an image of several windows, both, two images; sizes differ."""
    draw = np.random.default_rng(0)
    shapes = ((150, 220, 3), (300, 90, 3))
    pictures = [draw.integers(0, 256, shape, np.uint8) for shape in shapes]
    items = [
        Item("a fox", instruction="Find it."),
        Item(None, (pictures[0],)),
        Item("two pictures of words", tuple(pictures)),
    ]
    return spec.collate([spec.encode(one) for one in items])


def stock(model: Any, batch: Batch) -> Any:
    """Run transformers' own forward on the whole of a batch."""
    ids, tower = torch.from_numpy(batch.input_ids), tower_of(model.config)
    pixels = normalize(batch.real_patches(), tower.mean, tower.std)
    with torch.no_grad():
        return model(
            input_ids=ids,
            attention_mask=torch.from_numpy(batch.attention_mask),
            position_ids=torch.from_numpy(batch.position_ids),
            pixel_values=torch.from_numpy(pixels),
            image_grid_thw=torch.tensor([(1, *size) for size in batch.image_sizes]),
            mm_token_type_ids=(ids == model.config.image_token_id).long(),
            output_hidden_states=True,
            use_cache=False,
        )


def at_ret(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Each item's state [B, hidden] at its last token."""
    return states[torch.arange(len(batch)), torch.from_numpy(batch.attention_mask).sum(1) - 1]
