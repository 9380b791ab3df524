"""Small random models of the families besides Qwen2-VL, and their graphs."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen3VLConfig, Qwen3VLModel

from puma_edge.backbones import Family, Model, backbone_of, tower_of
from puma_edge.bundle import Bundle
from puma_edge.images import PixelLimits
from puma_edge.inputs import Batch, Encoded, collate
from puma_edge.spellings import rope_settings
from puma_edge.tower import Tower
from tests.models import IMAGE_PAD, PAD, VOCABULARY, bundle_of, fill, item, tiny_model

LAYERS = 5
# Patches of images: smaller than a window, one window, several, with narrow ones at the edges.
SIZES = (
    (),
    ((4, 6),),
    ((2, 2), (8, 4)),
    (),
    ((10, 14),),
    ((4, 4), (12, 6), (2, 18)),
)


def tiny(family: Family, vocabulary: int = VOCABULARY, image_token_id: int = IMAGE_PAD) -> Model:
    """A model of `LAYERS` decoder layers; every term of its forward counts."""
    tokens: dict[str, Any] = {"image_token_id": image_token_id}
    torch.manual_seed(11)
    match family:
        case Family.QWEN2_VL:
            return tiny_model(11, layers=LAYERS, vocabulary=vocabulary, **tokens)
        case Family.QWEN2_5_VL:
            config = Qwen2_5_VLConfig(
                text_config=_text(vocabulary) | rope_settings(10000.0, [2, 3, 3]),
                vision_config=WINDOWS,
                **tokens,
            )
            model: Model = Qwen2_5_VLModel(config)
        case Family.QWEN3_VL:
            text = {"head_dim": 32, **rope_settings(10000.0, [6, 5, 5], interleaved=True)}
            model = Qwen3VLModel(
                Qwen3VLConfig(text_config=_text(vocabulary) | text, vision_config=STACK, **tokens)
            )
    model.eval()
    fill(model)
    return model


# Windows of 2 x 2 tokens, which is 4 x 4 patches; one block of three sees the whole image.
WINDOWS = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "out_hidden_size": 64,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}
# A learned grid of 6 x 6, features of two of four blocks.
STACK = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
}


def _text(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


@dataclass(frozen=True)
class Small:
    """A small model of a family, cut to three layers, its graphs, and items to embed."""

    model: Model
    tower: Tower
    limits: PixelLimits
    items: tuple[Encoded, ...]
    folder: Path

    def batch(self, *chosen: int) -> Batch:
        """A batch of some of the items."""
        items = [self.items[number] for number in chosen]
        return collate(items, PAD, self.limits, self.tower)


@cache
def small(family: Family) -> Small:
    """Export once for all tests; do not write in the folder."""
    from puma_edge.export.graphs import export_graphs

    model, limits = tiny(family), backbone_of(family).limits
    model.language_model.layers = model.language_model.layers[:3]
    model.language_model.config.num_hidden_layers = 3
    patch = limits.patch_size
    words = (5, 9, 2, 30, 0, 3)
    items = tuple(
        item(count, sizes, seed, patch)
        for seed, (count, sizes) in enumerate(zip(words, SIZES, strict=True))
    )
    folder = Path(tempfile.mkdtemp(prefix="puma-edge-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    export_graphs(model, folder)
    return Small(model, tower_of(model.config), limits, items, folder)


def small_bundle(family: Family, folder: Path, tokenizer: Tokenizer) -> Bundle:
    """Its graphs in fp32 and fp16, sealed."""
    made = small(family)
    return bundle_of(made.folder, folder, tokenizer, made.limits, 64, made.tower)
