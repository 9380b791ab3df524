"""Blocks of the three families' vision towers, spelt for the exporter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from puma_edge.export.layers import Linear, RMSNorm, attend, layer_norm, linear, rotate


@dataclass(frozen=True)
class View:
    """What patches are turned by, and which of them see each other.

    Attributes:
        cos: [rows, 1, places, head / 2].
        sin: likewise.
        mask: [rows, 1, 1, places], added to the scores.
        patches: [windows, places], which patch stands there, counted over the whole batch; None
            where a row is an image, its patches in order.
        places: [images, P], where each patch stands, counted over windows * places.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor
    patches: Tensor | None = None
    places: Tensor | None = None


def mix(qkv: Tensor, heads: int, view: View) -> Tensor:
    """Attention over qkv [images, P, 3 * d] -> [images, P, d]."""
    if view.patches is not None:
        rows = qkv.flatten(0, 1).index_select(0, view.patches.flatten())
        qkv = rows.reshape(view.patches.shape[0], view.patches.shape[1], -1)
    qkv = qkv.unflatten(2, (3, heads, -1))
    query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
    query, key = rotate(query, view.cos, view.sin), rotate(key, view.cos, view.sin)
    mixed = attend(query, key, value, view.mask)
    if view.places is None:
        return mixed
    rows = mixed.flatten(0, 1).index_select(0, view.places.flatten())
    return rows.reshape(view.places.shape[0], view.places.shape[1], -1)


class VisionBlock(nn.Module):
    """A block of Qwen2-VL or Qwen3-VL: layer norms, a plain MLP."""

    def __init__(self, block: nn.Module, heads: int, names: tuple[str, str, str]) -> None:
        """Take a block's weights; `names` are those of its MLP's two layers and activation."""
        super().__init__()
        self.heads = heads
        self.norm1 = layer_norm(block.get_submodule("norm1"))
        self.norm2 = layer_norm(block.get_submodule("norm2"))
        self.qkv = linear(block, "attn.qkv")
        self.proj = linear(block, "attn.proj")
        self.fc1 = linear(block, f"mlp.{names[0]}")
        self.fc2 = linear(block, f"mlp.{names[1]}")
        self.act = block.get_submodule(f"mlp.{names[2]}")

    def forward(self, hidden: Tensor, view: View) -> Tensor:
        hidden = hidden + self.proj(mix(self.qkv(self.norm1(hidden)), self.heads, view))
        result: Tensor = hidden + self.fc2(self.act(self.fc1(self.norm2(hidden))))
        return result


class GatedBlock(nn.Module):
    """A block of Qwen2.5-VL: RMS norms, a gated MLP."""

    def __init__(self, block: nn.Module, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = RMSNorm(block.get_submodule("norm1"))
        self.norm2 = RMSNorm(block.get_submodule("norm2"))
        self.qkv = linear(block, "attn.qkv")
        self.proj = linear(block, "attn.proj")
        self.gate, self.up, self.down = (
            linear(block, f"mlp.{name}_proj") for name in ("gate", "up", "down")
        )
        self.act = block.get_submodule("mlp.act_fn")

    def forward(self, hidden: Tensor, view: View) -> Tensor:
        hidden = hidden + self.proj(mix(self.qkv(self.norm1(hidden)), self.heads, view))
        normed = self.norm2(hidden)
        result: Tensor = hidden + self.down(self.act(self.gate(normed)) * self.up(normed))
        return result


class Merger(nn.Module):
    """Joins the patches of a token: [images, P, d] -> [images, P / merged, out]."""

    def __init__(
        self, norm: nn.LayerNorm | RMSNorm, up: Linear, act: nn.Module, down: Linear
    ) -> None:
        super().__init__()
        self.norm, self.up, self.act, self.down = norm, up, act, down
        self.width = up.weight.shape[0]
        # DeepStack's norm is as wide as a token, all others as wide as a patch.
        self.is_joined = norm.weight.shape[0] == self.width

    def forward(self, hidden: Tensor) -> Tensor:
        # Three axes to the end: engines turn two-axis products into Gemm, which stays float.
        hidden = hidden if self.is_joined else self.norm(hidden)
        tokens = hidden.reshape(hidden.shape[0], -1, self.width)
        tokens = self.norm(tokens) if self.is_joined else tokens
        result: Tensor = self.down(self.act(self.up(tokens)))
        return result
