"""Checkpoints: load one, keep k of its layers, run it to the state at `[RET]`, save it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

from puma_edge.errors import PumaError, UsageError
from puma_edge.images import PixelLimits, UInt8, normalize
from puma_edge.inputs import Batch, InputSpec, Positions
from puma_edge.prompts import PAD, SPECIAL_TOKENS, PromptFormat, PromptTokenizer

GENERIC_INSTRUCTIONS = {
    "text": "Find an image or text that matches this text.",
    "image": "Find an image or text that matches this image.",
    "image,text": "Find an image or text that matches this image and text.",
}


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself under the key "puma" of its `config.json`.

    Attributes:
        base_model: the name or folder it was made from.
        kept_layers: indices of the kept decoder layers in the base.
        total_layers: decoder layers of the base.
        positions: how tokens are numbered.
        limits: pixel limits.
        prompt: the prompt format.
        instructions: the generic instruction for each query modality.
        matryoshka: dimensions to which embeddings may be cut because training did so.
    """

    base_model: str
    kept_layers: tuple[int, ...]
    total_layers: int
    positions: Positions = Positions.MROPE
    limits: PixelLimits = field(default_factory=PixelLimits)
    prompt: PromptFormat = field(default_factory=PromptFormat)
    instructions: dict[str, str] = field(default_factory=lambda: dict(GENERIC_INSTRUCTIONS))
    matryoshka: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Card:
        """Read what `dataclasses.asdict` wrote."""
        return cls(
            **{
                **values,
                "kept_layers": tuple(values["kept_layers"]),
                "matryoshka": tuple(values.get("matryoshka", ())),
                "positions": Positions(values["positions"]),
                "limits": PixelLimits(**values["limits"]),
                "prompt": PromptFormat(**values["prompt"]),
            }
        )


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer and card.

    Attributes:
        model: the decoder without a head; frozen parts are the caller's business.
        tokenizer: it knows every one of `SPECIAL_TOKENS`.
        card: how inputs are made and which layers were kept.
    """

    model: Qwen2VLModel
    tokenizer: Tokenizer
    card: Card

    @property
    def spec(self) -> InputSpec:
        """How items become arrays for this model."""
        prompts = PromptTokenizer(self.tokenizer, self.card.prompt)
        return InputSpec(prompts, self.card.limits, self.card.positions)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        config: Any = self.model.config.text_config
        return int(config.hidden_size)


def add_special_tokens(tokenizer: Tokenizer, vocabulary: int) -> Tokenizer:
    """The tokenizer with `[RET]` in a spare row of the token embedding.

    Raises:
        PumaError: a token of Qwen2-VL is missing, or the embedding has no spare row.
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
    """Load a folder or a hub model; a bare Qwen2-VL gets PUMA's default card.

    Raises:
        PumaError: there is no such model, or it is of a family that is not supported.
    """
    transformers.utils.logging.disable_progress_bar()  # ours are shown where work is long
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise PumaError(f"{name} is no model folder (it has no config.json)")
    try:
        config: Any = Qwen2VLConfig.from_pretrained(name)
        if config.model_type != "qwen2_vl" or "qwen2_vl" not in _model_type(name, config):
            raise PumaError(f"{name} is a {_model_type(name, config)}; expected a Qwen2-VL model")
        model = Qwen2VLModel.from_pretrained(name, dtype=dtype)
        tokenizer = _load_tokenizer(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PumaError(
            f"no model at {name!r} ({reason}); give a folder, a hub id, or shape:qwen2-vl-2b"
        ) from None
    layers = len(model.language_model.layers)
    values = getattr(config, "puma", None)
    card = Card.from_dict(values) if values else Card(name, tuple(range(layers)), layers)
    tokenizer = add_special_tokens(tokenizer, config.text_config.vocab_size)
    return Checkpoint(model, tokenizer, card)


def _model_type(name: str, config: Any) -> str:
    path = Path(name) / "config.json"
    if path.is_file():
        return str(json.loads(path.read_text(encoding="utf-8")).get("model_type"))
    return str(config.model_type)


def _load_tokenizer(name: str) -> Tokenizer:
    path = Path(name) / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)


def save(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint that `load` and plain transformers open (safetensors)."""
    model = checkpoint.model
    model.config.puma = json.loads(json.dumps(asdict(checkpoint.card)))
    model.config.architectures = ["Qwen2VLModel"]
    state = {
        name: tensor.detach().to(dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)
    PreTrainedTokenizerFast(
        tokenizer_object=checkpoint.tokenizer, pad_token=PAD, padding_side="right"
    ).save_pretrained(folder)


def choose_layers(total: int, keep: int, *, with_last: bool = False) -> tuple[int, ...]:
    """The first `keep` layers, or the first `keep - 1` and the last.

    Raises:
        UsageError: `keep` is not between 1 and `total`.
    """
    if not 1 <= keep <= total:
        raise UsageError(f"--keep-layers {keep}: this model has {total} layers; give 1 to {total}")
    return (*range(keep - 1), total - 1) if with_last else tuple(range(keep))


def prune(checkpoint: Checkpoint, layers: Sequence[int]) -> Checkpoint:
    """Drop all decoder layers but `layers`, in place; the final norm stays.

    The result is exactly `norm(hidden_states[k])` of the full model for the first k layers.
    """
    language = checkpoint.model.language_model
    kept = [language.layers[index] for index in layers]
    for place, layer in enumerate(kept):
        layer.self_attn.layer_idx = place
    language.layers = nn.ModuleList(kept)
    config: Any = checkpoint.model.config.text_config
    config.layer_types = [config.layer_types[index] for index in layers]
    config.num_hidden_layers = len(layers)
    language.config.num_hidden_layers = len(layers)
    language.config.layer_types = config.layer_types
    kept_layers = tuple(checkpoint.card.kept_layers[index] for index in layers)
    return Checkpoint(
        checkpoint.model, checkpoint.tokenizer, replace(checkpoint.card, kept_layers=kept_layers)
    )


def image_tokens(model: Any, batch: Batch) -> Tensor:
    """The vision tower's output [image tokens, hidden] for a batch's images, in order."""
    return _vision(model, batch.real_patches(), batch.image_sizes)


def vision_tokens(
    model: Any, images: Sequence[UInt8], sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, ...]:
    """The vision tower's output [tokens, hidden] for each image, given as patches [n, 588].

    Args:
        model: a `Qwen2VLModel`, or one that peft has wrapped.
        images: the patches of each image.
        sizes: (rows, columns) of patches of each.
    """
    merged = model.config.vision_config.spatial_merge_size**2
    tokens = _vision(model, np.concatenate(images), sizes)
    return torch.split(tokens, [len(image) // merged for image in images])


def _vision(model: Any, patches: UInt8, sizes: Sequence[tuple[int, int]]) -> Tensor:
    device = next(model.parameters()).device
    pixels = torch.from_numpy(normalize(patches)).to(device)
    grids = torch.tensor([(1, *size) for size in sizes], device=device)
    tokens = model.visual(pixels, grid_thw=grids).pooler_output
    assert isinstance(tokens, Tensor)
    return tokens


def ret_states(model: Any, batch: Batch, vision: Tensor | None = None) -> Tensor:
    """The hidden state at `[RET]`, after the final norm and before L2 normalisation.

    Args:
        model: a `Qwen2VLModel`, or one that peft has wrapped.
        batch: a collated batch of B items.
        vision: the images' tokens, if they are known already.

    Returns:
        [B, hidden].
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(batch.input_ids).to(device)
    mask = torch.from_numpy(batch.attention_mask).to(device)
    embeddings = model.get_input_embeddings()(ids)
    if batch.image_sizes:
        vision = image_tokens(model, batch) if vision is None else vision
        place = ids == model.config.image_token_id
        embeddings = embeddings.masked_scatter(
            place.unsqueeze(-1).expand_as(embeddings), vision.to(embeddings.dtype)
        )
    states = model.language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=torch.from_numpy(batch.position_ids).to(device),
        use_cache=False,
    ).last_hidden_state
    last = mask.sum(dim=1) - 1
    rows: Tensor = states[torch.arange(len(last), device=device), last]
    return rows
