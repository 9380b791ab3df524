"""The families of models that can be cut: their classes in transformers, and how they differ.

Everything that is asked of a family is asked here or, for its graphs, in `export.vision_graphs`;
all other code works from `Tower`, a few numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLModel, Qwen2VLModel, Qwen3VLModel

from puma_edge.errors import PumaError
from puma_edge.images import PixelLimits, UInt8, normalize
from puma_edge.inputs import Batch
from puma_edge.prompts import PromptFormat
from puma_edge.spellings import IS_OLDER
from puma_edge.tower import PLAIN, Tower

Model = Qwen2VLModel | Qwen2_5_VLModel | Qwen3VLModel

TOKENS = 300  # of an image at most: PUMA's limit
HALF = (0.5, 0.5, 0.5)  # mean and deviation of Qwen3-VL's pixels


class Family(str, Enum):
    """A family, by transformers' `model_type`."""

    QWEN2_VL = "qwen2_vl"
    QWEN2_5_VL = "qwen2_5_vl"
    QWEN3_VL = "qwen3_vl"


@dataclass(frozen=True)
class Backbone:
    """What a model of a family gets that says nothing else of itself.

    Attributes:
        model: its class, without a head.
        limits: the smallest picture it was trained with, and PUMA's limit of tokens.
        prompt: the prompt format: whether its chat template has a system turn of its own.
    """

    model: type[Model]
    limits: PixelLimits = field(default_factory=PixelLimits)
    prompt: PromptFormat = field(default_factory=PromptFormat)


def backbone_of(family: Family) -> Backbone:
    """What is known of a family."""
    match family:
        case Family.QWEN2_VL:
            return Backbone(Qwen2VLModel)
        case Family.QWEN2_5_VL:
            return Backbone(Qwen2_5_VLModel)
        case Family.QWEN3_VL:
            limits = PixelLimits(64 * 32 * 32, TOKENS * 32 * 32, patch_size=16)
            return Backbone(Qwen3VLModel, limits, PromptFormat(system=None))


def family_of(config: Any, name: str) -> Family:
    """The family a configuration belongs to.

    Raises:
        PumaError: it is none of them.
    """
    try:
        return Family(config.model_type)
    except ValueError:
        known = ", ".join(one.value for one in Family)
        raise PumaError(
            f"{name} is a {config.model_type}; expected one of: {known}; give another model"
        ) from None


def tower_of(config: Any) -> Tower:
    """How a model's vision tower differs from the plain one.

    Raises:
        PumaError: the model is of no known family.
    """
    vision = config.vision_config
    match family_of(config, "the model"):
        case Family.QWEN2_VL:
            return PLAIN
        case Family.QWEN2_5_VL:
            tokens = vision.window_size // vision.spatial_merge_size // vision.patch_size
            return Tower(window=tokens * vision.spatial_merge_size)
        case Family.QWEN3_VL:
            return Tower(
                grid=int(vision.num_position_embeddings**0.5),
                features=len(feature_blocks(vision)),
                mean=HALF,
                std=HALF,
            )


def feature_blocks(vision: Any) -> list[int]:
    """The blocks of a DeepStack tower whose outputs become features, ascending."""
    return sorted(one for one in vision.deepstack_visual_indexes if one < vision.depth)


def vision_tokens(model: Any, patches: UInt8, sizes: Any) -> Tensor:
    """A tower's tokens [tokens, width] for the patches of some images, one image after the other.

    Where the tower gives features for the first decoder layers, they stand behind each token's
    own values, and the width is that of the decoder times one more than their number.

    Args:
        model: a model of any family, or one that peft has wrapped.
        patches: uint8 [n, 3 * p * p].
        sizes: (rows, columns) of patches of each image.
    """
    device = next(model.parameters()).device
    tower = tower_of(model.config)
    pixels = torch.from_numpy(normalize(patches, tower.mean, tower.std)).to(device)
    grids = torch.tensor([(1, *size) for size in sizes], device=device)
    found = model.visual(pixels, grid_thw=grids)
    if IS_OLDER:
        own, features = found if tower.features else (found, ())
    else:
        own, features = found.pooler_output, found.deepstack_features if tower.features else ()
    return torch.cat((own, *features), dim=-1)


def decoder_states(model: Any, batch: Batch, tokens: Tensor | None) -> Tensor:
    """The decoder's output [B, S, hidden] after the final norm.

    Args:
        model: a model of any family, or one that peft has wrapped.
        batch: a collated batch of B items of at most S tokens.
        tokens: its images' tokens, of `vision_tokens`; None where it has none.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(batch.input_ids).to(device)
    embeddings = model.get_input_embeddings()(ids)
    features: dict[str, Any] = {}
    if tokens is not None:
        place = ids == model.config.image_token_id
        own, *further = tokens.to(embeddings.dtype).split(embeddings.shape[-1], dim=-1)
        embeddings = embeddings.masked_scatter(place.unsqueeze(-1).expand_as(embeddings), own)
        if further:
            features = {"visual_pos_masks": place, "deepstack_visual_embeds": further}
    states: Tensor = model.language_model(
        inputs_embeds=embeddings,
        attention_mask=torch.from_numpy(batch.attention_mask).to(device),
        position_ids=torch.from_numpy(batch.position_ids).to(device),
        use_cache=False,
        **features,
    ).last_hidden_state
    return states
