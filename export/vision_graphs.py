"""The vision towers of the three families as torch modules for the exporter.

Each computes what its family's `visual` does in transformers on `puma_edge.images.normalize`d
patches; normalisation and the doubled time slice are folded into the patch embedding. Images of a
batch are padded to one length; what depends on their sizes comes in as indices, made by
`puma_edge.feeds`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from puma_edge.backbones import Family, Model, family_of, feature_blocks, tower_of
from puma_edge.export.layers import MASKED, PatchLinear, RMSNorm, floats, layer_norm, linear
from puma_edge.export.vision_layers import GatedBlock, Merger, View, VisionBlock


class VisionGraph(nn.Module):
    """Qwen2-VL: every patch sees its whole image."""

    def __init__(self, model: Model) -> None:
        """Wrap a model's tower, sharing its weights where they are float32 on the CPU."""
        super().__init__()
        visual, heads = model.visual, vision_config(model).num_heads
        self.patch = PatchLinear(visual.patch_embed.proj, tower_of(model.config))
        self.inverse_frequencies = nn.Buffer(floats(visual.rotary_pos_emb.inv_freq))
        names = ("fc1", "fc2", "act")
        self.blocks = nn.ModuleList(VisionBlock(block, heads, names) for block in visual.blocks)
        self.merger = _merger(visual.merger, layer_norm(visual.merger.ln_q))

    def forward(self, patches: Tensor, patch_positions: Tensor, n_patches: Tensor) -> Tensor:
        """Tokens of a padded batch of images.

        Args:
            patches: uint8 [images, P, 3 * p * p].
            patch_positions: int64 [images, P, 2], row and column.
            n_patches: int64 [images], how many of the P are real.

        Returns:
            float32 [images * P / 4, d]; rows of padding hold nothing of use.
        """
        hidden = self.patch(patches)
        view = _view(patch_positions, n_patches, self.inverse_frequencies)
        for block in self.blocks:
            hidden = block(hidden, view)
        result: Tensor = self.merger(hidden)
        return result.flatten(0, 1)


class WindowGraph(nn.Module):
    """Qwen2.5-VL: in most blocks a patch sees its window alone.

    Patches stand in their usual order throughout; only queries, keys and values are laid out by
    windows, inside those blocks, so that nothing else is computed for a window's empty places.
    """

    def __init__(self, model: Model) -> None:
        """Wrap a model's tower, sharing its weights where they are float32 on the CPU."""
        super().__init__()
        visual, config = model.visual, vision_config(model)
        self.patch = PatchLinear(visual.patch_embed.proj, tower_of(model.config))
        self.inverse_frequencies = nn.Buffer(floats(visual.rotary_pos_emb.inv_freq))
        self.blocks = nn.ModuleList(GatedBlock(block, config.num_heads) for block in visual.blocks)
        self.whole = frozenset(config.fullatt_block_indexes)
        self.merger = _merger(visual.merger, RMSNorm(visual.merger.ln_q))

    def forward(
        self,
        patches: Tensor,
        patch_positions: Tensor,
        n_patches: Tensor,
        window_patches: Tensor,
        window_lengths: Tensor,
        patch_places: Tensor,
    ) -> Tensor:
        """As `VisionGraph.forward`; for the last three see `puma_edge.feeds.window_feeds`."""
        hidden = self.patch(patches)
        whole = _view(patch_positions, n_patches, self.inverse_frequencies)
        positions = patch_positions.flatten(0, 1).index_select(0, window_patches.flatten())
        positions = positions.reshape(window_patches.shape[0], window_patches.shape[1], 2)
        windows = _view(
            positions, window_lengths, self.inverse_frequencies, window_patches, patch_places
        )
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, whole if number in self.whole else windows)
        result: Tensor = self.merger(hidden)
        return result.flatten(0, 1)


class DeepStackGraph(nn.Module):
    """Qwen3-VL: learned positions besides rotary ones, and features of inner blocks."""

    def __init__(self, model: Model) -> None:
        """Wrap a model's tower, sharing its weights where they are float32 on the CPU."""
        super().__init__()
        visual: Any = model.visual
        config = vision_config(model)
        self.patch = PatchLinear(visual.patch_embed.proj, tower_of(model.config))
        self.grid = nn.Parameter(floats(visual.pos_embed.weight), requires_grad=False)
        self.inverse_frequencies = nn.Buffer(floats(visual.rotary_pos_emb.inv_freq))
        names = ("linear_fc1", "linear_fc2", "act_fn")
        self.blocks = nn.ModuleList(
            VisionBlock(block, config.num_heads, names) for block in visual.blocks
        )
        self.merger = _stacked(visual.merger)
        self.taken = feature_blocks(config)
        numbers = [list(config.deepstack_visual_indexes).index(block) for block in self.taken]
        self.features = nn.ModuleList(
            _stacked(visual.deepstack_merger_list[number]) for number in numbers
        )

    def forward(
        self,
        patches: Tensor,
        patch_positions: Tensor,
        n_patches: Tensor,
        grid_index: Tensor,
        grid_weights: Tensor,
    ) -> Tensor:
        """As `VisionGraph.forward`; for the last two see `puma_edge.feeds.grid_feeds`.

        Returns:
            float32 [images * P / 4, (1 + features) * d]: behind each token its features.
        """
        points = nn.functional.embedding(grid_index, self.grid)
        hidden = self.patch(patches) + (points * grid_weights.unsqueeze(-1)).sum(2)
        view = _view(patch_positions, n_patches, self.inverse_frequencies)
        features: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, view)
            if number in self.taken:
                features.append(self.features[len(features)](hidden))
        return torch.cat((self.merger(hidden), *features), dim=-1).flatten(0, 1)


def vision_graph(model: Model) -> nn.Module:
    """The graph of a model's tower."""
    match family_of(model.config, "the model"):
        case Family.QWEN2_VL:
            return VisionGraph(model)
        case Family.QWEN2_5_VL:
            return WindowGraph(model)
        case Family.QWEN3_VL:
            return DeepStackGraph(model)


def vision_config(model: Model) -> Any:
    """The vision tower's configuration, which transformers types as one of several things."""
    return model.config.vision_config


def _view(
    positions: Tensor,
    lengths: Tensor,
    frequencies: Tensor,
    patches: Tensor | None = None,
    places: Tensor | None = None,
) -> View:
    """Angles and mask for rows and columns [rows, places, 2], the first `lengths` of them real."""
    angles = (positions.to(torch.float32).unsqueeze(-1) * frequencies).flatten(2).unsqueeze(1)
    real = torch.arange(positions.shape[1]) < lengths.unsqueeze(1)
    mask = torch.where(real, 0.0, MASKED)[:, None, None, :]
    return View(angles.cos(), angles.sin(), mask, patches, places)


def _merger(merger: nn.Module, norm: nn.LayerNorm | RMSNorm) -> Merger:
    up, down = linear(merger, "mlp.0"), linear(merger, "mlp.2")
    return Merger(norm, up, merger.get_submodule("mlp.1"), down)


def _stacked(merger: nn.Module) -> Merger:
    norm = layer_norm(merger.get_submodule("norm"))
    up, down = linear(merger, "linear_fc1"), linear(merger, "linear_fc2")
    return Merger(norm, up, merger.get_submodule("act_fn"), down)
