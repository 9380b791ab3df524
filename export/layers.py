"""Layers spelt for the exporter: primitive operations over weights shared with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from puma_edge.tower import Tower

# Added to the scores of masked keys: far below any score, and finite in half precision.
MASKED = -30000.0
# Pixels enter the first product as (value - 128) / 64: exact in half precision and in INT8.
PIXEL_ZERO, PIXEL_STEP = 128, 1 / 64


class Linear(nn.Module):
    """x @ W + b with W [in, out], a view of the model's own weight: no copy, no transpose."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(floats(linear.weight).t(), requires_grad=False)
        has_bias = linear.bias is not None
        self.bias = nn.Parameter(floats(linear.bias), requires_grad=False) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


def floats(values: Tensor) -> Tensor:
    """The tensor itself where it is float32 on the CPU already, a copy otherwise."""
    return values.detach().to(device="cpu", dtype=torch.float32)


class PatchLinear(nn.Module):
    """uint8 patches [..., 3 * p * p] -> [..., d]: normalisation and patch embedding in one product.

    With u = (pixel - 128) / 64, a normalised pixel is (u * 64 / 255 + 128 / 255 - mean) / std, and
    both time slices of a still image are the same.
    """

    def __init__(self, projection: nn.Module, tower: Tower) -> None:
        """Fold a patch embedding's convolution, its weight [d, 3, 2, p, p]."""
        super().__init__()
        weight, own = projection.weight, projection.bias
        assert isinstance(weight, Tensor)
        slices = floats(weight).double().sum(2).flatten(2)  # [d, 3, p * p]
        mean = torch.tensor(tower.mean, dtype=torch.float64).reshape(1, 3, 1)
        std = torch.tensor(tower.std, dtype=torch.float64).reshape(1, 3, 1)
        folded = (slices / (255 * PIXEL_STEP * std)).flatten(1).t().contiguous()
        bias = (slices * (PIXEL_ZERO / 255 - mean) / std).sum((1, 2))
        if isinstance(own, Tensor):
            bias = bias + floats(own).double()
        self.weight = nn.Parameter(folded.float(), requires_grad=False)
        self.bias = nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, patches: Tensor) -> Tensor:
        pixels = (patches.to(torch.float32) - PIXEL_ZERO) * PIXEL_STEP
        return torch.matmul(pixels, self.weight) + self.bias


def layer_norm(norm: nn.Module) -> nn.LayerNorm:
    assert isinstance(norm, nn.LayerNorm)
    own = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, device="meta")
    own.weight = nn.Parameter(floats(norm.weight), requires_grad=False)
    own.bias = nn.Parameter(floats(norm.bias), requires_grad=False)
    return own


class RMSNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        weight, epsilon = norm.weight, norm.variance_epsilon
        assert isinstance(weight, Tensor)
        self.weight = nn.Parameter(floats(weight), requires_grad=False)
        self.epsilon = float(epsilon)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        # This spelling is the one ONNX Runtime fuses to a single kernel.
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [..., d] by cos and sin [..., d / 2], the halves forming the pairs."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of [b, heads, q, d] over [b, groups, s, d] -> [b, q, heads * d].

    The heads of a group are laid in one row of queries, so that keys and values are never
    repeated. The scale goes on the queries, before the product: in half precision the products
    overflow otherwise.
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    rows = heads // groups * length
    query = (query * size**-0.5).reshape(batch, groups, rows, size)
    scores = torch.matmul(query, key.transpose(2, 3)).reshape(batch, heads, length, -1)
    weights = torch.softmax(scores + mask, dim=-1).reshape(batch, groups, rows, -1)
    mixed = torch.matmul(weights, value).reshape(batch, heads, length, size)
    return mixed.transpose(1, 2).reshape(batch, length, heads * size)


def linear(module: nn.Module, name: str) -> Linear:
    linear = module.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return Linear(linear)


class TextLayer(nn.Module):
    def __init__(self, layer: nn.Module, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.norm1 = RMSNorm(layer.get_submodule("input_layernorm"))
        self.norm2 = RMSNorm(layer.get_submodule("post_attention_layernorm"))
        self.q, self.k, self.v, self.o = (linear(layer, f"self_attn.{n}_proj") for n in "qkvo")
        # Qwen3-VL norms each head's queries and keys.
        attention = layer.get_submodule("self_attn")
        has_norms = hasattr(attention, "q_norm")
        self.q_norm = RMSNorm(attention.get_submodule("q_norm")) if has_norms else nn.Identity()
        self.k_norm = RMSNorm(attention.get_submodule("k_norm")) if has_norms else nn.Identity()
        self.gate, self.up, self.down = (
            linear(layer, f"mlp.{name}_proj") for name in ("gate", "up", "down")
        )
        self.act = layer.get_submodule("mlp.act_fn")

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """One layer over [b, s, d]; with `rows`, only those of the flattened tokens: [b, 1, d]."""
        normed = self.norm1(hidden)
        key = rotate(self.k_norm(self._split(self.k(normed), self.groups)), cos, sin)
        value = self._split(self.v(normed), self.groups)
        if rows is not None:
            hidden, normed = pick(hidden, rows), pick(normed, rows)
            cos, sin = (pick(part.squeeze(1), rows).unsqueeze(1) for part in (cos, sin))
        query = rotate(self.q_norm(self._split(self.q(normed), self.heads)), cos, sin)
        hidden = hidden + self.o(attend(query, key, value, mask))
        normed = self.norm2(hidden)
        result: Tensor = hidden + self.down(self.act(self.gate(normed)) * self.up(normed))
        return result

    @staticmethod
    def _split(x: Tensor, heads: int) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """Tokens `rows` [b] of x [b, s, d] flattened to [b * s, d] -> [b, 1, d]."""
    return x.flatten(0, 1).index_select(0, rows).unsqueeze(1)
