"""Checkpoints: load one, keep k of its layers, run it to the state at `[RET]`, save it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from puma_edge.backbones import (
    Backbone,
    Model,
    backbone_of,
    decoder_states,
    family_of,
    tower_of,
)
from puma_edge.backbones import vision_tokens as tower_tokens
from puma_edge.card import Card
from puma_edge.errors import PumaError
from puma_edge.images import UInt8
from puma_edge.inputs import Batch, InputSpec
from puma_edge.layer_choice import choose_layers as choose_layers
from puma_edge.prompts import PAD, SPECIAL_TOKENS, PromptTokenizer
from puma_edge.spellings import loading, read_config, write_both
from puma_edge.tower import Tower


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer and card.

    Attributes:
        model: the decoder without a head; frozen parts are the caller's business.
        tokenizer: it knows every one of `SPECIAL_TOKENS`.
        card: how inputs are made and which layers were kept.
    """

    model: Model
    tokenizer: Tokenizer
    card: Card

    @property
    def spec(self) -> InputSpec:
        """How items become arrays for this model."""
        prompts = PromptTokenizer(self.tokenizer, self.card.prompt)
        return InputSpec(prompts, self.card.limits, self.card.positions, self.tower)

    @property
    def tower(self) -> Tower:
        """How its vision tower differs from the plain one."""
        return tower_of(self.model.config)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        config: Any = self.model.config.text_config
        return int(config.hidden_size)


def add_special_tokens(tokenizer: Tokenizer, vocabulary: int) -> Tokenizer:
    """The tokenizer with `[RET]` in a spare row of the token embedding.

    Raises:
        PumaError: a token of the prompts is missing, or the embedding has no spare row.
    """
    missing = [token for token in SPECIAL_TOKENS[:-1] if tokenizer.token_to_id(token) is None]
    if missing:
        raise PumaError(
            f"the tokenizer lacks {', '.join(missing)}; expected that of a Qwen2-VL model"
        )
    tokenizer.add_special_tokens([AddedToken(SPECIAL_TOKENS[-1], special=True, normalized=False)])
    if (tokenizer.token_to_id(SPECIAL_TOKENS[-1]) or 0) >= vocabulary:
        raise PumaError(
            f"the token embedding has {vocabulary} rows and none to spare for {SPECIAL_TOKENS[-1]}"
        )
    return tokenizer


def load(name: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Load a folder or a hub model; one without a card gets PUMA's settings for its family.

    Raises:
        PumaError: there is no such model, or it is of a family that is not supported.
    """
    transformers.utils.logging.disable_progress_bar()  # ours are shown where work is long
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise PumaError(f"{name} is no model folder (it has no config.json)")
    try:
        config = read_config(name)
        backbone = backbone_of(family_of(config, name))
        opened: Any = backbone.model.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **loading(config)
        )
        model, found = opened
        tokenizer = _load_tokenizer(name)
        values = getattr(config, "puma", None)
        card = Card.from_dict(values) if values else _new_card(name, config, backbone)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PumaError(
            f"no model at {name!r} ({reason}); give a folder, a hub id, or shape:qwen2-vl-2b"
        ) from None
    if missing := sorted(found["missing_keys"]):
        raise PumaError(
            f"{name} lacks {len(missing)} of its weights ({missing[0]}, ...); expected a whole "
            f"{config.model_type} model; copy it again"
        )
    tokenizer = add_special_tokens(tokenizer, config.text_config.vocab_size)
    return Checkpoint(model, tokenizer, card)


def _new_card(name: str, config: Any, backbone: Backbone) -> Card:
    layers, vision = config.text_config.num_hidden_layers, config.vision_config
    limits = backbone.limits
    found = vision.patch_size, vision.spatial_merge_size
    if found != (limits.patch_size, limits.merge_size):
        raise PumaError(
            f"{name} has patches of {found[0]} pixels, {found[1]} to an edge of a token; expected "
            f"{limits.patch_size} and {limits.merge_size}, as all published models of its family"
        )
    return Card(name, tuple(range(layers)), layers, limits=limits, prompt=backbone.prompt)


def _load_tokenizer(name: str) -> Tokenizer:
    path = Path(name) / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)


@contextmanager
def weights_errors() -> Iterator[None]:
    """A full disk as the system's error: safetensors tells of it in a type of its own."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def save(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint that `load` and plain transformers open (safetensors)."""
    model = checkpoint.model
    model.config.puma = json.loads(json.dumps(asdict(checkpoint.card)))
    model.config.architectures = [type(model).__name__]
    state = {
        name: tensor.detach().to(dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with weights_errors():
        model.save_pretrained(folder, state_dict=state)
    PreTrainedTokenizerFast(
        tokenizer_object=checkpoint.tokenizer, pad_token=PAD, padding_side="right"
    ).save_pretrained(folder)
    write_both(folder)


def prune(checkpoint: Checkpoint, layers: Sequence[int]) -> Checkpoint:
    """Drop all decoder layers but `layers`, in place; the final norm stays.

    The result is exactly `norm(hidden_states[k])` of the full model for the first k layers.

    Raises:
        UsageError: layers the model does not have, or a choice without its DeepStack layers.
    """
    language: Any = checkpoint.model.language_model
    features = checkpoint.tower.features
    choose_layers(len(language.layers), 0, layers=layers, features=features)
    kept = [language.layers[index] for index in layers]
    for place, layer in enumerate(kept):
        layer.self_attn.layer_idx = place
    language.layers = nn.ModuleList(kept)
    config: Any = checkpoint.model.config.text_config
    for one in (config, language.config):
        one.num_hidden_layers = len(layers)
        if len(getattr(one, "layer_types", None) or ()) > len(layers):
            one.layer_types = [one.layer_types[index] for index in layers]
    kept_layers = tuple(checkpoint.card.kept_layers[index] for index in layers)
    return Checkpoint(
        checkpoint.model, checkpoint.tokenizer, replace(checkpoint.card, kept_layers=kept_layers)
    )


def image_tokens(model: Any, batch: Batch) -> Tensor:
    """The vision tower's output [image tokens, width] for a batch's images, in order."""
    return tower_tokens(model, batch.real_patches(), batch.image_sizes)


def vision_tokens(
    model: Any, images: Sequence[UInt8], sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, ...]:
    """The vision tower's output [tokens, width] for each image, given as patches [n, 3 * p * p].

    Args:
        model: a model of any family, or one that peft has wrapped.
        images: the patches of each image.
        sizes: (rows, columns) of patches of each.
    """
    merged = model.config.vision_config.spatial_merge_size**2
    tokens = tower_tokens(model, np.concatenate(images), sizes)
    return torch.split(tokens, [len(image) // merged for image in images])


def ret_states(model: Any, batch: Batch, vision: Tensor | None = None) -> Tensor:
    """The hidden state at `[RET]`, after the final norm and before L2 normalisation.

    Args:
        model: a model of any family, or one that peft has wrapped.
        batch: a collated batch of B items.
        vision: the images' tokens, if they are known already.

    Returns:
        [B, hidden].
    """
    if batch.image_sizes and vision is None:
        vision = image_tokens(model, batch)
    states = decoder_states(model, batch, vision if batch.image_sizes else None)
    last = torch.from_numpy(batch.attention_mask.sum(axis=1) - 1).to(states.device)
    rows: Tensor = states[torch.arange(len(last), device=states.device), last]
    return rows
