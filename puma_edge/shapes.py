"""Real model shapes with random weights: for speed and size where no model hub can be reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from puma_edge.backbones import Family, Model, backbone_of, tower_of
from puma_edge.bundle import Manifest
from puma_edge.card import Card
from puma_edge.config import SHAPE_PREFIX
from puma_edge.errors import PumaError, UsageError
from puma_edge.layer_choice import choose_layers
from puma_edge.model import Checkpoint, add_special_tokens, load, prune
from puma_edge.prompts import IMAGE_PAD
from puma_edge.sample import base_folder
from puma_edge.spellings import rope_settings
from puma_edge.tower import Tower


@dataclass(frozen=True)
class Shape:
    """The sizes of a published model, as its `config.json` has them.

    Attributes:
        family: its family.
        layers: decoder layers.
        text: other settings of the decoder.
        vision: settings of the vision tower.
    """

    family: Family
    layers: int
    text: dict[str, Any]
    vision: dict[str, Any]


def _decoder(
    hidden: int, intermediate: int, heads: int, groups: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "rms_norm_eps": 1e-6,
        **rope_settings(1000000.0, [16, 24, 24]),
    }


def _qwen2(layers: int, text: dict[str, Any]) -> Shape:
    hidden = text["hidden_size"]
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": hidden, "num_heads": 16}
    return Shape(Family.QWEN2_VL, layers, text, vision)


def _qwen2_5(layers: int, text: dict[str, Any]) -> Shape:
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Shape(Family.QWEN2_5_VL, layers, text, vision)


def _qwen3(layers: int, text: dict[str, Any]) -> Shape:
    rope = rope_settings(5000000.0, [24, 20, 20], interleaved=True)
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 48**2,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return Shape(Family.QWEN3_VL, layers, {**text, "head_dim": 128, **rope}, vision)


SHAPES = {
    "qwen2-vl-2b": _qwen2(28, _decoder(1536, 8960, 12, 2, 151936)),
    "qwen2-vl-7b": _qwen2(28, _decoder(3584, 18944, 28, 4, 152064)),
    "qwen2.5-vl-3b": _qwen2_5(36, _decoder(2048, 11008, 16, 2, 151936)),
    "qwen2.5-vl-7b": _qwen2_5(28, _decoder(3584, 18944, 28, 4, 152064)),
    "qwen3-vl-2b": _qwen3(28, _decoder(2048, 6144, 16, 8, 151936)),
}
SPREAD = 0.02  # standard deviation of the random weights, Qwen2-VL's initializer_range


def find_shape(name: str) -> Shape:
    """The shape that `shape:...` names.

    Raises:
        UsageError: there is none of this name.
    """
    shape = SHAPES.get(name.removeprefix(SHAPE_PREFIX))
    if shape is None:
        known = ", ".join(SHAPE_PREFIX + one for one in SHAPES)
        raise UsageError(f"unknown shape {name!r}; expected one of: {known}")
    return shape


def shape_tower(name: str) -> Tower:
    """The vision tower of `shape:...`.

    Raises:
        UsageError: there is no such shape.
    """
    return tower_of(_config(find_shape(name), 1))


def build_shape(
    name: str,
    keep_layers: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    layers: Sequence[int] = (),
) -> Checkpoint:
    """A model of a published shape with random weights, in the kept layers only.

    Args:
        name: one of `SHAPES`, with `shape:` before it.
        keep_layers: decoder layers that are built, the first so many; 0 for all.
        seed: of the weights.
        dtype: they are drawn in float32 and rounded to bf16, then held in this.
        layers: the layers themselves, where they are others than the first.

    Raises:
        UsageError: no such shape, or layers it does not have.
    """
    shape = find_shape(name)
    if not layers:
        keep_layers = keep_layers or shape.layers
    features = shape_tower(name).features
    kept = choose_layers(shape.layers, keep_layers, layers=layers, features=features)
    tokenizer = Tokenizer.from_file(str(base_folder() / "tokenizer.json"))
    backbone = backbone_of(shape.family)
    config = _config(shape, len(kept), image_token_id=tokenizer.token_to_id(IMAGE_PAD))
    with torch.device("meta"):
        model = backbone.model(config)
    nn.Module.to(model, dtype).to_empty(device="cpu")
    _fill(model, seed)
    nn.Module.eval(model).requires_grad_(False)
    card = Card(name, kept, shape.layers, limits=backbone.limits, prompt=backbone.prompt)
    return Checkpoint(model, add_special_tokens(tokenizer, shape.text["vocab_size"]), card)


def open_baseline(name: str, manifest: Manifest, dtype: torch.dtype) -> Checkpoint:
    """The PyTorch model a bundle was made from, as the benchmark's baseline."""
    if name.startswith(SHAPE_PREFIX):
        return build_shape(name, dtype=dtype, layers=manifest.kept_layers)
    checkpoint = load(name, dtype)
    kept, wanted = checkpoint.card.kept_layers, manifest.kept_layers
    if kept == wanted:
        return checkpoint
    if not set(wanted) <= set(kept):
        raise PumaError(f"{name} has layers {kept}, the bundle holds {wanted}: not the same model")
    return prune(checkpoint, [kept.index(layer) for layer in wanted])


def _config(shape: Shape, layers: int, **tokens: Any) -> Any:
    config: Any = backbone_of(shape.family).model.config_class
    text = {**shape.text, "num_hidden_layers": layers}
    return config(text_config=text, vision_config=dict(shape.vision), **tokens)


def _fill(model: Model, seed: int) -> None:
    """Draw the weights one tensor at a time, and compute the buffers that `to_empty` left blank."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                draw = torch.empty(parameter.shape).normal_(0, SPREAD, generator=generator)
                parameter.copy_(draw.to(torch.bfloat16))
    parts: Any = (model.visual, model.language_model)
    for rotary in (parts[0].rotary_pos_emb, parts[1].rotary_emb):
        fresh = type(rotary)(rotary.config)
        rotary.inv_freq = fresh.inv_freq
        rotary.original_inv_freq = fresh.inv_freq.clone()
    if any(buffer.is_meta for buffer in model.buffers()):
        raise PumaError(f"{model.config.model_type} has buffers this shape does not fill")
