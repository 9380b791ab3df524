"""What calibration data shows of a model's activations, from which every INT8 form is scaled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.calibration.clipping import Histogram, choose
from puma_edge.calibration.linears import Group, find_groups, norm_of, norm_width
from puma_edge.calibration.onnx_files import load_model
from puma_edge.calibration.qdq import Activation, Form
from puma_edge.calibration.ranges import ChannelRange, count, observe
from puma_edge.calibration.readers import text_readings, vision_readings
from puma_edge.config import Ranges
from puma_edge.errors import PumaError
from puma_edge.feeds import Feeds
from puma_edge.inputs import Batch

Float32 = NDArray[np.float32]
Progress = Callable[[int, int], None]

# The vision graph's pixels are whole numbers, whose scale is known.
PIXELS = "patch.weight"


class RowScales(str, Enum):
    """Which inputs of linear layers get one scale per token instead of a calibrated range."""

    NONE = "none"
    UNBOUNDED = "unbounded"  # those no norm bounds: of output projections and second MLP layers
    ALL = "all"


@dataclass(frozen=True)
class QuantSettings:
    """How graphs are quantised.

    Attributes:
        smooth: SmoothQuant's alpha: how much of the activations' spread goes to the weights;
            0 leaves both alone.
        row_scales: which inputs get one scale per token, taken as the graph runs; the TensorRT
            form has none.
        ranges: how the calibrated ranges of the others are chosen.
        keep_float: names of weights that stay in float, "layers.3.down.weight", "tokens" or, for
            the vision graph, "blocks.3.fc2.weight".
    """

    smooth: float = 0.5
    row_scales: RowScales = RowScales.UNBOUNDED
    ranges: Ranges = Ranges.MINMAX
    keep_float: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Observed:
    """What calibration data showed of one group's input.

    Attributes:
        ends: the smallest and the largest value, after division by the factors.
        factors: [channels], what the input is to be divided by; None for nothing.
        counts: a histogram, where the range is not simply between the ends.
    """

    ends: tuple[float, float]
    factors: Float32 | None
    counts: Histogram | None = None

    def scale(self, form: Form, ranges: Ranges) -> Activation:
        """The calibrated scale of a form."""
        is_signed = form is Form.TRT
        ends = self.ends if self.counts is None else choose(self.counts, ranges, is_signed)
        return Activation.around_zero(*ends) if is_signed else Activation.covering(*ends)


@dataclass(frozen=True)
class Calibration:
    """One set of observations, from which the graphs of every form are written.

    Attributes:
        settings: how.
        items: items read.
        images: images read.
        parts: "vision" or "text" -> name of a group's input -> what was seen.
    """

    settings: QuantSettings
    items: int
    images: int
    parts: dict[str, dict[str, Observed]]

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        kept = sorted(self.settings.keep_float)
        settings = asdict(self.settings) | {"keep_float": kept}
        return {"items": self.items, "images": self.images, "settings": settings}


def calibrate(
    folder: Path,
    batches: Sequence[Batch],
    settings: QuantSettings | None = None,
    forms: Collection[Form] = (Form.CPU,),
    progress: Progress = lambda done, total: None,
) -> Calibration:
    """Run the float32 graphs over calibration data and keep what the scales are made from.

    Args:
        folder: holds `vision.fp32.onnx` and `text.fp32.onnx`; it must be writable.
        batches: calibration data, like what will be embedded, with images among it.
        settings: how to quantise.
        forms: the forms that will be written.
        progress: told how many readings of how many are done.

    Raises:
        PumaError: no items or no images in the batches, or activations that are not finite.
        MissingExtraError: ONNX Runtime is not installed.
    """
    settings = settings or QuantSettings()
    images = sum(len(batch.n_patches) for batch in batches)
    items = sum(len(batch) for batch in batches)
    if not images:
        raise PumaError(
            f"calibration needs images, and its {items} items have none; add pictures to the "
            "--calibration folder, or leave it out to calibrate on the data set"
        )
    passes = 1 if settings.ranges is Ranges.MINMAX else 2
    done, total = 0, passes * (images + items)

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    tokens: list[Float32] = []

    def vision() -> Iterator[Feeds]:
        return vision_readings(batches)

    def text() -> Iterator[Feeds]:
        return text_readings(batches, tokens, tokens[0].shape[1])

    parts = {
        "vision": _observe(folder, "vision", vision, settings, forms, step, tokens),
        "text": _observe(folder, "text", text, settings, forms, step),
    }
    return Calibration(settings, items, images, parts)


def _observe(
    folder: Path,
    part: str,
    readings: Callable[[], Iterator[Feeds]],
    settings: QuantSettings,
    forms: Collection[Form],
    step: Callable[[], None],
    outputs: list[Any] | None = None,
) -> dict[str, Observed]:
    source = folder / f"{part}.fp32.onnx"
    groups = find_groups(load_model(source).graph)
    seen = observe(source, groups, readings(), outputs, step)
    factors = {group.name: _factors(group, seen[group.name], settings) for group in groups}
    divided = {name: _divided(one, factors[name]) for name, one in seen.items()}
    counted: dict[str, Histogram] = {}
    if settings.ranges is not Ranges.MINMAX:
        wanted = [
            group.name
            for group in groups
            if group.weights != (PIXELS,) and any(is_ranged(group, f, settings) for f in forms)
        ]
        ranges = {name: (divided[name], factors[name]) for name in wanted}
        counted = count(source, ranges, readings(), step)
    return {
        name: Observed(one.ends, factors[name], counted.get(name)) for name, one in divided.items()
    }


def _divided(seen: ChannelRange, factors: Float32 | None) -> ChannelRange:
    return seen if factors is None else seen / factors


def _factors(group: Group, seen: ChannelRange, settings: QuantSettings) -> Float32 | None:
    if settings.smooth <= 0 or group.weights == (PIXELS,):
        return None
    width = norm_width(group)
    return smoothing(seen.largest, group.weight_maximum(), settings.smooth, width)


def is_ranged(group: Group, form: Form, settings: QuantSettings) -> bool:
    """Whether a form takes one calibrated scale for a group's input."""
    if form is Form.TRT:
        return True
    which = settings.row_scales
    has_rows = which is RowScales.ALL or (which is RowScales.UNBOUNDED and norm_of(group) is None)
    return not has_rows


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
