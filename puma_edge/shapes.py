"""Real model shapes with random weights: for speed and size where no model hub can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from puma_edge.bundle import Manifest
from puma_edge.config import SHAPE_PREFIX
from puma_edge.errors import PumaError, UsageError
from puma_edge.model import Card, Checkpoint, add_special_tokens, choose_layers, load, prune
from puma_edge.prompts import IMAGE_PAD
from puma_edge.sample import base_folder


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model; see its `config.json`."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


SHAPES = {
    "qwen2-vl-2b": Shape(1536, 8960, 28, 12, 2, 151936),
    "qwen2-vl-7b": Shape(3584, 18944, 28, 28, 4, 152064),
}
SPREAD = 0.02  # standard deviation of the random weights, Qwen2-VL's initializer_range


def build_shape(
    name: str, keep_layers: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """A model of a published shape with random weights, in the kept layers only.

    Args:
        name: `shape:qwen2-vl-2b` or `shape:qwen2-vl-7b`.
        keep_layers: decoder layers that are built; 0 for all.
        seed: of the weights.
        dtype: they are drawn in float32 and rounded to bf16, then held in this.

    Raises:
        UsageError: no such shape, or a layer count it does not have.
    """
    shape = SHAPES.get(name.removeprefix(SHAPE_PREFIX))
    if shape is None:
        known = ", ".join(SHAPE_PREFIX + one for one in SHAPES)
        raise UsageError(f"unknown shape {name!r}; expected one of: {known}")
    kept = choose_layers(shape.layers, keep_layers or shape.layers)
    tokenizer = Tokenizer.from_file(str(base_folder() / "tokenizer.json"))
    config = _config(shape, len(kept), image_token_id=tokenizer.token_to_id(IMAGE_PAD))
    with torch.device("meta"):
        model = Qwen2VLModel(config)
    nn.Module.to(model, dtype).to_empty(device="cpu")
    _fill(model, seed)
    model.eval().requires_grad_(False)
    card = Card(base_model=name, kept_layers=kept, total_layers=shape.layers)
    return Checkpoint(model, add_special_tokens(tokenizer, shape.vocabulary), card)


def open_baseline(name: str, manifest: Manifest, dtype: torch.dtype) -> Checkpoint:
    """The PyTorch model a bundle was made from, as the benchmark's baseline."""
    if name.startswith(SHAPE_PREFIX):
        return build_shape(name, len(manifest.kept_layers), dtype=dtype)
    checkpoint = load(name, dtype)
    kept, wanted = checkpoint.card.kept_layers, manifest.kept_layers
    if kept == wanted:
        return checkpoint
    if not set(wanted) <= set(kept):
        raise PumaError(f"{name} has layers {kept}, the bundle holds {wanted}: not the same model")
    return prune(checkpoint, [kept.index(layer) for layer in wanted])


def _config(shape: Shape, layers: int, **tokens: Any) -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [16, 24, 24],
                "rope_theta": 1000000.0,
            },
        },
        vision_config={
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": shape.hidden,
            "num_heads": 16,
        },
        **tokens,
    )


def _fill(model: Qwen2VLModel, seed: int) -> None:
    """Draw the weights one tensor at a time, and compute the buffers that `to_empty` left blank."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                draw = torch.empty(parameter.shape).normal_(0, SPREAD, generator=generator)
                parameter.copy_(draw.to(torch.bfloat16))
    vision, text = model.visual.rotary_pos_emb, model.language_model.rotary_emb
    for rotary in (vision, text):
        fresh = type(rotary)(rotary.config)
        rotary.inv_freq = fresh.inv_freq
        rotary.original_inv_freq = fresh.inv_freq.clone()
    if any(buffer.is_meta for buffer in model.buffers()):
        raise PumaError(f"{model.config.model_type} has buffers this shape does not fill")
