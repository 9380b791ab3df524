"""The decoder of any family as a torch module, and the export of both of a bundle's graphs to ONNX.

All are written for the exporter and for every engine behind it: primitive operations, no shape
that depends on data, weights shared with the model they are made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from puma_edge.backbones import Family, Model, backbone_of, family_of, tower_of
from puma_edge.errors import PumaError
from puma_edge.export.layers import MASKED, RMSNorm, TextLayer, floats
from puma_edge.export.vision_graphs import vision_config, vision_graph
from puma_edge.export.writer import write_graph
from puma_edge.feeds import vision_feeds
from puma_edge.inputs import Batch
from puma_edge.tower import Tower


class TextGraph(nn.Module):
    """The decoder: token ids with image tokens put in their places -> one embedding per item."""

    def __init__(self, model: Model) -> None:
        """Wrap a model's decoder, sharing its weights where they are float32 on the CPU."""
        super().__init__()
        text: Any = model.language_model
        config = text_config(model)
        self.width = int(config.hidden_size)
        self.features = tower_of(model.config).features
        self.tokens = nn.Parameter(floats(text.embed_tokens.weight), requires_grad=False)
        self.layers = nn.ModuleList(
            TextLayer(layer, config.num_attention_heads, config.num_key_value_heads)
            for layer in text.layers
        )
        self.norm = RMSNorm(text.norm)
        self.frequencies = nn.Buffer(
            axis_frequencies(
                floats(text.rotary_emb.inv_freq),
                _rope_parameters(model)["mrope_section"],
                family_of(model.config, "the model"),
            )
        )
        self.attention_scaling = float(text.rotary_emb.attention_scaling)

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
            image_tokens: float32 [rows, (1 + features) * d], of the vision graph; rows may be 0.
            image_index: int64 [batch, seq], the image token at each place, `rows` at text.

        Returns:
            float32 [batch, d]: the final norm's output at the last token, L2-normalised.
        """
        hidden, features = self._embed(input_ids, image_tokens, image_index)
        cos, sin = self._angles(position_ids)
        length = input_ids.shape[1]
        places = torch.arange(length)
        # Padding stands on the right, where the causal mask hides it from every real token.
        causal = torch.where(places <= places.unsqueeze(1), 0.0, MASKED)
        for number, layer in enumerate(self.layers[:-1]):
            hidden = layer(hidden, cos, sin, causal)
            if number < len(features):
                hidden = hidden + features[number]
        # Only the last token is read after the last layer: it alone is computed there.
        last = (attention_mask.sum(1) - 1).clamp(min=0)
        rows = last + torch.arange(input_ids.shape[0]) * length
        mask = torch.where(places <= last.unsqueeze(1), 0.0, MASKED)[:, None, None, :]
        pooled = self.norm(self.layers[-1](hidden, cos, sin, mask, rows)).squeeze(1)
        size = torch.sqrt(pooled.pow(2).sum(-1, keepdim=True))
        result: Tensor = pooled / size.clamp(min=1e-12)
        return result

    def _embed(
        self, input_ids: Tensor, image_tokens: Tensor, image_index: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Words and image tokens [b, s, d], and the features likewise, zero where text stands."""
        rows, width = image_tokens.shape
        padded = torch.cat((image_tokens, torch.zeros(1, width)))
        is_image = (image_index < rows).unsqueeze(-1)
        words = nn.functional.embedding(input_ids, self.tokens)
        found = nn.functional.embedding(image_index, padded)
        if not self.features:
            return torch.where(is_image, found, words), ()
        own, *features = found.split(self.width, dim=-1)
        return torch.where(is_image, own, words), tuple(features)

    def _angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin [b, 1, s, head / 2]; each frequency turns with one of the three axes."""
        angles = position_ids.to(torch.float32).unsqueeze(-1) * self.frequencies[:, None, None]
        angle = angles.sum(0).unsqueeze(1)  # exact: two of the three are zero
        return angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling


def text_config(model: Model) -> Any:
    """The decoder's configuration, which transformers types as one of several things."""
    return model.config.text_config


def axis_frequencies(inverse: Tensor, sections: Sequence[int], family: Family) -> Tensor:
    """The frequencies [3, head / 2] of time, row and column, zero where another axis has its turn.

    Args:
        inverse: all frequencies [head / 2].
        sections: how many of them belong to each axis.
        family: Qwen3-VL deals them out in turn, and the rest to time; the others one axis after
            the other.
    """
    axes = torch.zeros(len(inverse), dtype=torch.int64)
    match family:
        case Family.QWEN2_VL | Family.QWEN2_5_VL:
            axes = torch.repeat_interleave(torch.arange(len(sections)) % 3, torch.tensor(sections))
        case Family.QWEN3_VL:
            for axis in (1, 2):
                axes[axis : 3 * sections[axis] : 3] = axis
    return torch.where(axes == torch.arange(3).unsqueeze(1), inverse, 0.0)


def _rope_parameters(model: Model) -> dict[str, list[int]]:
    config = text_config(model)
    # Called rope_scaling before transformers 5.
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return found or {}


def check_model(model: object) -> None:
    """Refuse what these graphs would compute wrongly.

    Raises:
        PumaError: the model is of no known family, or has settings the graphs do not cover.
    """
    if not isinstance(model, Model):
        known = ", ".join(backbone_of(family).model.__name__ for family in Family)
        raise PumaError(
            f"cannot export a {type(model).__name__}: only transformers' {known} are supported"
        )
    text, rope = text_config(model), _rope_parameters(model)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise PumaError(f"cannot export layers of kind {sorted(kinds)}: only full_attention is")
    if rope.get("rope_type", "default") not in ("default", "mrope") or "mrope_section" not in rope:
        raise PumaError(f"cannot export rotary positions {rope}: only mrope with sections is")


def export_graphs(model: Model, folder: Path) -> None:
    """Write `vision.fp32.onnx` and `text.fp32.onnx` into `folder`, replacing what is there.

    Weights go to `NAME.onnx.data` beside a graph where they take more than 1.5 GB. A model in half
    precision is exported in float32, one graph after the other.

    Raises:
        PumaError: see `check_model`.
    """
    check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    _export_vision(model, folder / "vision.fp32.onnx")
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    per_token = {0: Dim("batch"), 1: Dim("seq")}
    text = TextGraph(model)
    write_graph(
        text,
        {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "position_ids": tokens.expand(3, 2, 5).contiguous(),
            "image_tokens": torch.zeros(3, (1 + text.features) * text.width),
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


def _export_vision(model: Model, path: Path) -> None:
    tower, config = tower_of(model.config), vision_config(model)
    images, quads = Dim("images"), Dim("quads")
    per_patch = {0: images, 1: config.spatial_merge_size**2 * quads}
    dynamic: dict[str, dict[int, Any]] = {"n_patches": {0: images}}
    windows = {0: Dim("windows")}
    dynamic |= {"window_patches": windows, "window_lengths": windows}
    # Two images, two patches of tokens high and wide, and wider than a window.
    rows = config.spatial_merge_size
    columns = max(2 * rows, 2 * tower.window)
    feeds = vision_feeds(_blank_batch(2, rows, columns, config.patch_size, tower))
    write_graph(
        vision_graph(model),
        {name: torch.from_numpy(values) for name, values in feeds.items()},
        {name: dynamic.get(name, per_patch) for name in feeds},
        "image_tokens",
        path,
    )


def _blank_batch(images: int, rows: int, columns: int, patch: int, tower: Tower) -> Batch:
    """Black images of one size, and no text: what the exporter traces a vision graph with."""
    count = rows * columns
    places = np.indices((rows, columns)).reshape(2, -1).T
    nothing = np.zeros((0, 0), np.int64)
    return Batch(
        input_ids=nothing,
        attention_mask=nothing,
        position_ids=np.zeros((3, 0, 0), np.int64),
        image_index=nothing,
        patches=np.zeros((images, count, 3 * patch**2), np.uint8),
        patch_positions=np.tile(places, (images, 1, 1)).astype(np.int64),
        n_patches=np.full(images, count, np.int64),
        image_sizes=((rows, columns),) * images,
        tower=tower,
    )
