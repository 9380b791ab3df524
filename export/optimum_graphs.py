"""The graphs that Optimum is given: those of a bundle, apart or joined, and one for words alone."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from puma_edge.backbones import Model, tower_of
from puma_edge.export.graphs import TextGraph
from puma_edge.export.vision_graphs import vision_config, vision_graph
from puma_edge.feeds import makers
from puma_edge.tower import Tower

_ITEMS = {0: "batch", 1: "sequence"}
_PATCHES = {0: "images", 1: "patches"}
# The free axes of each input.
AXES: dict[str, dict[int, str]] = {
    "input_ids": _ITEMS,
    "attention_mask": _ITEMS,
    "position_ids": {1: "batch", 2: "sequence"},
    "image_tokens": {0: "rows"},
    "image_index": _ITEMS,
    "patches": _PATCHES,
    "patch_positions": _PATCHES,
    "n_patches": {0: "images"},
    "window_patches": {0: "windows"},
    "window_lengths": {0: "windows"},
    "patch_places": _PATCHES,
    "grid_index": _PATCHES,
    "grid_weights": _PATCHES,
}


class Variant(str, Enum):
    """What one ONNX file holds; Optimum's `--variant`."""

    WHOLE = "default"  # words and pictures in, embeddings out
    VISION = "vision"  # a bundle's vision graph
    TEXT = "text"  # a bundle's text graph
    WORDS = "words"  # as `transformers` would ask a text encoder, pictures left out


def input_names(variant: Variant, tower: Tower) -> tuple[str, ...]:
    """What a graph takes, in the order its module does."""
    vision, text = (tuple(makers(tower)[part]) for part in ("vision", "text"))
    match variant:
        case Variant.WHOLE:
            return (*(name for name in text if name != "image_tokens"), *vision)
        case Variant.VISION:
            return vision
        case Variant.TEXT:
            return text
        case Variant.WORDS:
            return text[:2]


def make_graph(variant: Variant, model: Model) -> nn.Module:
    """The module of a file, sharing the model's weights."""
    match variant:
        case Variant.WHOLE:
            return WholeGraph(model)
        case Variant.VISION:
            return vision_graph(model)
        case Variant.TEXT:
            return TextGraph(model)
        case Variant.WORDS:
            return WordsGraph(model)


class WholeGraph(nn.Module):
    """Both graphs of a bundle in one."""

    def __init__(self, model: Model) -> None:
        """Wrap a model, sharing its weights where they are float32 on the CPU."""
        super().__init__()
        self.vision, self.text = vision_graph(model), TextGraph(model)
        self.names = input_names(Variant.VISION, tower_of(model.config))
        self.merged = vision_config(model).spatial_merge_size ** 2

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_index: Tensor,
        *vision: Tensor,
    ) -> Tensor:
        """Embeddings [batch, d] of words and pictures; there may be no picture at all.

        Args:
            input_ids: see `TextGraph`; likewise the next three.
            attention_mask: see there.
            position_ids: see there.
            image_index: see there.
            vision: what the vision graph takes.
        """
        patches = vision[0]
        # A product takes an empty batch and a reshape does not: where there is no picture, one of
        # four black patches is put in, and what becomes of it is cut off.
        missing = (torch.ones_like(vision[self.names.index("n_patches")]).sum() == 0).long()
        filled = [
            functional.pad(values, self._padding(name, values.ndim, missing))
            for name, values in zip(self.names, vision, strict=True)
        ]
        rows = patches.shape[0] * patches.shape[1] // self.merged
        tokens = self.vision(*filled)[:rows]
        result: Tensor = self.text(input_ids, attention_mask, position_ids, tokens, image_index)
        return result

    def _padding(self, name: str, axes: int, missing: Tensor) -> Any:
        """How many places to add before and behind each axis, the last axis first.

        Numbers among tensors, which the exporter takes for numbers that depend on the inputs.
        """
        added: list[Any] = [0] * axes
        added[0] = missing
        if AXES[name].get(1) == "patches":
            added[1] = missing * self.merged
        return [side for count in reversed(added) for side in (0, count)]


class WordsGraph(nn.Module):
    """The text graph for whoever has no pictures: their inputs are filled in."""

    def __init__(self, model: Model) -> None:
        """Wrap a model, sharing its weights where they are float32 on the CPU."""
        super().__init__()
        self.text = TextGraph(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings [batch, d] of tokens and their mask, both int64 [batch, sequence]."""
        # Words are numbered one after the other on all three axes, in either position scheme.
        places = torch.arange(input_ids.shape[1]).expand(3, input_ids.shape[0], -1)
        none = torch.zeros(0, (1 + self.text.features) * self.text.width)
        result: Tensor = self.text(
            input_ids, attention_mask, places, none, torch.zeros_like(input_ids)
        )
        return result
