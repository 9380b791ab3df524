"""The two graphs of a bundle as torch modules over a stock Qwen2-VL, and their export to ONNX.

Both are written for the exporter and for every engine behind it: primitive operations, no shape
that depends on data, weights shared with the model they are made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import Qwen2VLModel

from puma_edge.errors import PumaError
from puma_edge.export.layers import (
    MASKED,
    PatchLinear,
    RMSNorm,
    TextLayer,
    VisionBlock,
    floats,
    layer_norm,
    linear,
)
from puma_edge.export.writer import write_graph


class VisionGraph(nn.Module):
    """The vision tower: uint8 patches of padded images -> tokens of the language model.

    Computes what transformers' `Qwen2VLModel.visual` does on `puma_edge.images.normalize`d patches;
    normalisation and the doubled time slice are folded into the patch embedding.
    """

    def __init__(self, model: Qwen2VLModel) -> None:
        """Wrap a model's tower, sharing its weights where they are float32 on the CPU."""
        super().__init__()
        visual, config = model.visual, vision_config(model)
        self.patch = PatchLinear(visual.patch_embed.proj.weight)
        self.inverse_frequencies = nn.Buffer(floats(visual.rotary_pos_emb.inv_freq))
        self.blocks = nn.ModuleList(VisionBlock(b, config.num_heads) for b in visual.blocks)
        self.merged = config.spatial_merge_size**2
        self.norm = layer_norm(visual.merger.ln_q)
        self.up = linear(visual.merger, "mlp.0")
        self.act = visual.merger.get_submodule("mlp.1")
        self.down = linear(visual.merger, "mlp.2")

    def forward(self, patches: Tensor, patch_positions: Tensor, n_patches: Tensor) -> Tensor:
        """Tokens of a padded batch of images.

        Args:
            patches: uint8 [images, P, 588].
            patch_positions: int64 [images, P, 2], row and column.
            n_patches: int64 [images], how many of the P are real.

        Returns:
            float32 [images * P / 4, d]; rows of padding hold nothing of use.
        """
        hidden = self.patch(patches)
        angles = patch_positions.to(torch.float32).unsqueeze(-1) * self.inverse_frequencies
        angles = angles.flatten(2).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        real = torch.arange(patches.shape[1]) < n_patches.unsqueeze(1)
        mask = torch.where(real, 0.0, MASKED)[:, None, None, :]
        for block in self.blocks:
            hidden = block(hidden, cos, sin, mask)
        # Three axes to the end: engines turn two-axis products into Gemm, which stays float.
        tokens = self.norm(hidden).reshape(hidden.shape[0], -1, self.merged * hidden.shape[2])
        result: Tensor = self.down(self.act(self.up(tokens)))
        return result.flatten(0, 1)


class TextGraph(nn.Module):
    """The decoder: token ids with image tokens put in their places -> one embedding per item."""

    def __init__(self, model: Qwen2VLModel) -> None:
        """Wrap a model's decoder, sharing its weights where they are float32 on the CPU."""
        super().__init__()
        text, config = model.language_model, text_config(model)
        self.tokens = nn.Parameter(floats(text.embed_tokens.weight), requires_grad=False)
        self.layers = nn.ModuleList(
            TextLayer(layer, config.num_attention_heads, config.num_key_value_heads)
            for layer in text.layers
        )
        self.norm = RMSNorm(text.norm)
        self.inverse_frequencies = nn.Buffer(floats(text.rotary_emb.inv_freq))
        self.attention_scaling = float(text.rotary_emb.attention_scaling)
        self.sections: list[int] = list(_rope_parameters(model)["mrope_section"])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_tokens: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        """Embeddings of a batch padded on the right.

        Args:
            input_ids: int64 [batch, seq].
            attention_mask: int64 [batch, seq], 1 at tokens.
            position_ids: int64 [3, batch, seq], time, row and column.
            image_tokens: float32 [rows, d], of the vision graph; rows may be 0.
            image_index: int64 [batch, seq], the image token at each place, `rows` at text.

        Returns:
            float32 [batch, d]: the final norm's output at the last token, L2-normalised.
        """
        hidden = self._embed(input_ids, image_tokens, image_index)
        cos, sin = self._angles(position_ids)
        length = input_ids.shape[1]
        places = torch.arange(length)
        # Padding stands on the right, where the causal mask hides it from every real token.
        causal = torch.where(places <= places.unsqueeze(1), 0.0, MASKED)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, cos, sin, causal)
        # Only the last token is read after the last layer: it alone is computed there.
        last = (attention_mask.sum(1) - 1).clamp(min=0)
        rows = last + torch.arange(input_ids.shape[0]) * length
        mask = torch.where(places <= last.unsqueeze(1), 0.0, MASKED)[:, None, None, :]
        pooled = self.norm(self.layers[-1](hidden, cos, sin, mask, rows)).squeeze(1)
        size = torch.sqrt(pooled.pow(2).sum(-1, keepdim=True))
        result: Tensor = pooled / size.clamp(min=1e-12)
        return result

    def _embed(self, input_ids: Tensor, image_tokens: Tensor, image_index: Tensor) -> Tensor:
        rows, width = image_tokens.shape
        padded = torch.cat((image_tokens, torch.zeros(1, width)))
        is_image = (image_index < rows).unsqueeze(-1)
        words = nn.functional.embedding(input_ids, self.tokens)
        return torch.where(is_image, nn.functional.embedding(image_index, padded), words)

    def _angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin [b, 1, s, head / 2]; each section of the frequencies has its own axis."""
        angles = position_ids.to(torch.float32).unsqueeze(-1) * self.inverse_frequencies
        parts = torch.split(angles, self.sections, dim=-1)
        angle = torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1).unsqueeze(1)
        return angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling


def text_config(model: Qwen2VLModel) -> Any:
    """The decoder's configuration, which transformers types as one of several things."""
    return model.config.text_config


def vision_config(model: Qwen2VLModel) -> Any:
    """The vision tower's configuration."""
    return model.config.vision_config


def _rope_parameters(model: Qwen2VLModel) -> dict[str, list[int]]:
    config = text_config(model)
    # Called rope_scaling before transformers 5.
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return found or {}


def check_model(model: object) -> None:
    """Refuse what these graphs would compute wrongly.

    Raises:
        PumaError: the model is no `Qwen2VLModel`, or one with settings the graphs do not cover.
    """
    if not isinstance(model, Qwen2VLModel):
        raise PumaError(
            f"cannot export a {type(model).__name__}: only transformers' Qwen2VLModel is supported"
        )
    text, rope = text_config(model), _rope_parameters(model)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise PumaError(f"cannot export layers of kind {sorted(kinds)}: only full_attention is")
    if rope.get("rope_type", "default") not in ("default", "mrope") or "mrope_section" not in rope:
        raise PumaError(f"cannot export rotary positions {rope}: only mrope with sections is")


def export_graphs(model: Qwen2VLModel, folder: Path) -> None:
    """Write `vision.fp32.onnx` and `text.fp32.onnx` into `folder`, replacing what is there.

    Weights go to `NAME.onnx.data` beside a graph where they take more than 1.5 GB. A model in half
    precision is exported in float32, one graph after the other.

    Raises:
        PumaError: see `check_model`.
    """
    check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    images, quads = Dim("images"), Dim("quads")
    merged = vision_config(model).spatial_merge_size ** 2
    vision = VisionGraph(model)
    per_patch = {0: images, 1: merged * quads}
    write_graph(
        vision,
        {
            "patches": torch.zeros(2, 2 * merged, vision.patch.weight.shape[0], dtype=torch.uint8),
            "patch_positions": torch.zeros(2, 2 * merged, 2, dtype=torch.int64),
            "n_patches": torch.full((2,), merged, dtype=torch.int64),
        },
        {"patches": per_patch, "patch_positions": per_patch, "n_patches": {0: images}},
        "image_tokens",
        folder / "vision.fp32.onnx",
    )
    del vision
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    per_token = {0: Dim("batch"), 1: Dim("seq")}
    write_graph(
        TextGraph(model),
        {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "position_ids": tokens.expand(3, 2, 5).contiguous(),
            "image_tokens": torch.zeros(3, text_config(model).hidden_size),
            "image_index": tokens + 3,
        },
        {
            "input_ids": per_token,
            "attention_mask": per_token,
            "position_ids": {1: per_token[0], 2: per_token[1]},
            "image_tokens": {0: Dim("rows")},
            "image_index": per_token,
        },
        "sentence_embedding",
        folder / "text.fp32.onnx",
    )
