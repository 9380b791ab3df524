"""Calibrated INT8: float32 graphs and sample batches in, Q/DQ graphs out, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from puma_edge.calibration.linears import (
    Group,
    divide,
    find_groups,
    norm_of,
    norm_width,
    weight_name,
)
from puma_edge.calibration.onnx_files import load_model, remove_unused_weights, save_model
from puma_edge.calibration.qdq import Activation, Rewriter
from puma_edge.calibration.ranges import ChannelRange, observe
from puma_edge.calibration.readers import text_readings, vision_readings
from puma_edge.errors import PumaError
from puma_edge.feeds import Feeds
from puma_edge.inputs import Batch

Float32 = NDArray[np.float32]


class RowScales(str, Enum):
    """Which inputs of linear layers get one scale per token instead of a calibrated range."""

    NONE = "none"
    UNBOUNDED = "unbounded"  # those no norm bounds: of output projections and second MLP layers
    ALL = "all"


# The vision graph's pixels are whole numbers: this scale is exact.
PIXELS, PIXEL_SCALE = "patch.weight", Activation(1 / 64, 128)


@dataclass(frozen=True)
class QuantSettings:
    """How graphs are quantised.

    Attributes:
        smooth: SmoothQuant's alpha: how much of the activations' spread goes to the weights;
            0 leaves both alone.
        row_scales: which inputs get one scale per token, taken as the graph runs.
        keep_float: names of weights that stay in float, "layers.3.down.weight" or, for the vision
            graph, "blocks.3.fc2.weight".
    """

    smooth: float = 0.5
    row_scales: RowScales = RowScales.UNBOUNDED
    keep_float: frozenset[str] = frozenset()


def quantize_bundle_graphs(
    folder: Path, batches: Sequence[Batch], out: Path, settings: QuantSettings | None = None
) -> dict[str, Any]:
    """Write `vision.int8.onnx` and `text.int8.onnx` into `out`.

    Linear layers and the token table become S8 with one scale per output channel or row, their
    inputs U8; attention, norms, rotary embedding and pooling stay float. No scale depends on other
    items of a batch.

    Args:
        folder: holds `vision.fp32.onnx` and `text.fp32.onnx`; it must be writable.
        batches: calibration data, like what will be embedded, with images among it.
        out: an existing folder, which may be the same.
        settings: how to quantise.

    Returns:
        a report for the manifest: the settings, and what was done in each graph.

    Raises:
        PumaError: no items or no images in the batches, or activations that are not finite.
        MissingExtraError: ONNX Runtime is not installed.
    """
    settings = settings or QuantSettings()
    images = sum(len(batch.n_patches) for batch in batches)
    items = sum(len(batch) for batch in batches)
    if not images:
        raise PumaError(f"calibration needs images, and its {items} items have none")
    tokens: list[Float32] = []
    vision = _quantize(folder, out, "vision", vision_readings(batches), settings, tokens)
    readings = text_readings(batches, tokens, tokens[0].shape[1])
    text = _quantize(folder, out, "text", readings, settings)
    values = asdict(settings) | {"keep_float": sorted(settings.keep_float)}
    return {"items": items, "images": images, "settings": values, "vision": vision, "text": text}


def _quantize(
    folder: Path,
    out: Path,
    part: str,
    readings: Iterable[Feeds],
    settings: QuantSettings,
    outputs: list[Any] | None = None,
) -> dict[str, int]:
    source = folder / f"{part}.fp32.onnx"
    model = load_model(source)
    groups = _groups(model.graph, settings)
    seen = observe(source, groups, readings, outputs)
    # All divisions come before any rewriting: some go into weights that are still to be rounded.
    plans = [_plan(group, seen[group.name], settings) for group in groups]
    rewriter = Rewriter(model.graph)
    for plan in plans:
        rewriter.group(plan.group, plan.scale, plan.factors)
    rewriter.tables()
    remove_unused_weights(model.graph)
    save_model(model, out / f"{part}.int8.onnx")
    return {
        "linear_layers": sum(len(plan.group.products) for plan in plans),
        "inputs": len(plans),
        "inputs_with_row_scales": sum(plan.scale is None for plan in plans),
    }


@dataclass(frozen=True)
class _Plan:
    """How the linear layers of one group are rewritten; see `Rewriter.group`."""

    group: Group
    scale: Activation | None
    factors: Float32 | None


def _groups(graph: ir.Graph, settings: QuantSettings) -> list[Group]:
    kept = settings.keep_float
    groups = [
        Group(group.input, tuple(n for n in group.products if weight_name(n) not in kept))
        for group in find_groups(graph)
    ]
    return [group for group in groups if group.products]


def _has_row_scales(group: Group, which: RowScales) -> bool:
    return which is RowScales.ALL or (which is RowScales.UNBOUNDED and norm_of(group) is None)


def _plan(group: Group, seen: ChannelRange, settings: QuantSettings) -> _Plan:
    if group.weights == (PIXELS,):
        return _Plan(group, PIXEL_SCALE, None)
    rows, factors = _has_row_scales(group, settings.row_scales), None
    if settings.smooth > 0:
        maximum, width = group.weight_maximum(), norm_width(group)
        factors = smoothing(seen.largest, maximum, settings.smooth, width)
        seen = seen / factors
        group = divide(group, factors)
    scale = Activation.covering(float(seen.low.min()), float(seen.high.max()))
    return _Plan(group, None if rows else scale, factors)


def smoothing(
    activations: Float32, weights: Float32, alpha: float, width: int | None = None
) -> Float32:
    """SmoothQuant's factors [channels] (arXiv 2211.10438, equation 4), with geometric mean 1.

    Args:
        activations: the largest absolute value of each channel.
        weights: the largest absolute weight each channel meets.
        alpha: how much of the spread goes to the weights.
        width: where a reshape joined tokens of this many channels, they share their factors.
    """
    channels = len(activations)
    if width is not None:
        activations = activations.reshape(-1, width).max(axis=0)
        weights = weights.reshape(-1, width).max(axis=0)
    live = (activations > 0) & (weights > 0)
    factors = np.ones_like(activations)
    logs = alpha * np.log(activations[live]) - (1 - alpha) * np.log(weights[live])
    factors[live] = np.exp(np.clip(logs - logs.mean(), -10, 10)) if live.any() else 1
    return np.tile(factors, channels // len(factors))
