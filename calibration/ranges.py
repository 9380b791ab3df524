"""What the inputs of linear layers look like over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from puma_edge.calibration.clipping import BINS, Histogram
from puma_edge.calibration.linears import Group
from puma_edge.calibration.onnx_files import add_node, add_weight, load_model, shape_of
from puma_edge.errors import PumaError, require
from puma_edge.feeds import Feeds

Float32 = NDArray[np.float32]
Done = Callable[[], None]
# Adds nodes before another one that watch a value [n, channels]; returns their outputs.
Watcher = Callable[[ir.Node, ir.Value, int], list[ir.Value]]


@dataclass(frozen=True)
class ChannelRange:
    """Smallest and largest value seen in each channel: both [channels]."""

    low: Float32
    high: Float32

    def __or__(self, other: ChannelRange) -> ChannelRange:
        """The range that covers both."""
        return ChannelRange(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def __truediv__(self, factors: Float32) -> ChannelRange:
        """The range of the values divided by positive factors [channels]."""
        return ChannelRange(self.low / factors, self.high / factors)

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value of all."""
        return float(self.low.min()), float(self.high.max())

    @property
    def largest(self) -> Float32:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def observe(
    path: Path,
    groups: Sequence[Group],
    readings: Iterable[Feeds],
    outputs: list[Any] | None = None,
    done: Done = lambda: None,
) -> dict[str, ChannelRange]:
    """Run a graph over calibration data and watch the inputs of `groups`.

    The graph itself reduces each input to two rows, so that memory does not grow with the data.

    Args:
        path: the float32 graph; a temporary graph is written beside it.
        groups: the linear layers to watch.
        readings: feeds without padding.
        outputs: where given, the graph's own output for each reading is appended.
        done: called after each reading.

    Returns:
        the range of each group, by its name.

    Raises:
        PumaError: there are no readings, or an activation is not finite.
    """
    found: dict[str, ChannelRange] = {}
    model = _watched(path, {group.name: _ends for group in groups})
    for first, *rows in _runs(path, model, readings):
        if outputs is not None:
            outputs.append(first)
        for group, low, high in zip(groups, rows[::2], rows[1::2], strict=True):
            seen = ChannelRange(low, high)
            found[group.name] = found[group.name] | seen if group.name in found else seen
        done()
    broken = [name for name, seen in found.items() if not np.isfinite(seen.largest).all()]
    if broken:
        raise PumaError(f"{path} has activations that are not finite: {', '.join(broken[:3])}")
    return found


def count(
    path: Path,
    divided: Mapping[str, tuple[ChannelRange, Float32 | None]],
    readings: Iterable[Feeds],
    done: Done = lambda: None,
) -> dict[str, Histogram]:
    """Run a graph again and count the values of some inputs, once the factors are known.

    The graph itself counts: what comes out of it is a histogram per input, never an activation.

    Args:
        path: the float32 graph.
        divided: input -> the range of its values after division, and what it is divided by.
        readings: feeds without padding.
        done: called after each reading.

    Returns:
        the histogram of each input.
    """
    watch = {name: partial(_counts, seen=seen, by=by) for name, (seen, by) in divided.items()}
    total = {
        name: Histogram(*seen.ends, np.zeros(BINS, np.int64)) for name, (seen, _) in divided.items()
    }
    for _, *rows in _runs(path, _watched(path, watch), readings):
        for name, counts in zip(divided, rows, strict=True):
            total[name] += Histogram(total[name].low, total[name].high, counts)
        done()
    return total


def half_peaks(
    path: Path, readings: Iterable[Feeds], outputs: list[Any] | None = None
) -> dict[str, float]:
    """Run a graph and find the largest absolute value of each of its half-precision values.

    ONNX Runtime's CPU computes them in float32 and rounds only some: what float16 cannot hold shows
    as it is or as infinity, and what comes out in the end may be right all the same.

    Args:
        path: a graph with half precision in it; a temporary graph is written beside it.
        readings: feeds without padding.
        outputs: where given, the graph's own output for each reading is appended.
    """
    model = load_model(path)
    graph, end = model.graph, model.graph[-1]
    values = _halves(graph)
    line = add_weight(graph, "watch.line", np.asarray([-1], np.int64))
    single = {"to": ir.DataType.FLOAT.value}
    for value in values:
        name = f"watch.{value.name}"
        size = add_node(end, "Cast", [value], f"{name}.single", single)
        size = add_node(end, "Abs", [size], f"{name}.size")
        size = add_node(end, "Reshape", [size, line], f"{name}.line")
        peak = add_node(end, "ReduceMax", [size], f"{name}.peak", {"keepdims": 0})
        peak.shape = ir.Shape([])
        graph.outputs.append(peak)
    graph.sort()
    found = {str(value.name): 0.0 for value in values}
    for own, *peaks in _runs(path, model, readings):
        if outputs is not None:
            outputs.append(own)
        for name, peak in zip(found, peaks, strict=True):
            # Infinities may end as NaN, which is not larger than anything.
            found[name] = max(found[name], float(np.nan_to_num(peak, nan=np.inf, posinf=np.inf)))
    return found


def _halves(graph: ir.Graph) -> list[ir.Value]:
    """What a graph computes in half precision: not its weights, nor its inputs, which are others'.

    Inputs may be empty besides, and nothing is the largest of nothing.
    """
    found = []
    for node in graph:
        source = node.inputs[0] if node.op_type in ("Cast", "DequantizeLinear") else None
        if source is None or (source not in graph.inputs and source.const_value is None):
            found += [value for value in node.outputs if value.dtype == ir.DataType.FLOAT16]
    return found


def _runs(path: Path, model: ir.Model, readings: Iterable[Feeds]) -> Iterator[list[Any]]:
    """The outputs of each reading: the graph's own, then those the watchers add."""
    watching = path.with_name(f"watch.{path.name}")
    try:
        # Weights beside the graph stay there: both files stand in one folder.
        ir.save(model, watching)
        session = _session(watching)
        for feeds in readings:
            yield session.run(None, feeds)
    finally:
        watching.unlink(missing_ok=True)


def _watched(path: Path, watch: Mapping[str, Watcher]) -> ir.Model:
    """The graph with what the watchers make of each value as further outputs."""
    model = load_model(path)
    graph = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    end = graph[-1]
    for name, watcher in watch.items():
        value = values[name]
        product = next(use.node for use in value.uses() if use.node.op_type == "MatMul")
        weight = product.inputs[1]
        assert weight is not None
        channels = shape_of(weight)[0]
        shape = add_weight(graph, f"watch.{name}.shape", np.asarray([-1, channels], np.int64))
        flat = add_node(end, "Reshape", [value, shape], f"watch.{name}")
        graph.outputs.extend(watcher(end, flat, channels))
    graph.sort()
    return model


def _ends(end: ir.Node, flat: ir.Value, channels: int) -> list[ir.Value]:
    """The least and the greatest value of each channel."""
    assert isinstance(end.graph, ir.Graph)
    rows = add_weight(end.graph, f"{flat.name}.rows", np.asarray([0], np.int64))
    outputs = []
    for operator in ("ReduceMin", "ReduceMax"):
        name = f"{flat.name}.{operator}"
        output = add_node(end, operator, [flat, rows], name, {"keepdims": 0})
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([channels])
        outputs.append(output)
    return outputs


def _counts(
    end: ir.Node, flat: ir.Value, channels: int, *, seen: ChannelRange, by: Float32 | None
) -> list[ir.Value]:
    """How many values fall into each of `BINS` equal steps of the range."""
    graph, name = end.graph, str(flat.name)
    assert isinstance(graph, ir.Graph)
    low, high = seen.ends
    # One multiplication does both: division by the factors, and by the width of a bin.
    width = max((high - low) / BINS, 1e-30)
    scale = np.full(channels, 1 / width) / (1 if by is None else by)
    factor = add_weight(graph, f"{name}.factor", scale.astype(np.float32))
    offset = add_weight(graph, f"{name}.offset", np.asarray(low / width, np.float32))
    bounds = [add_weight(graph, f"{name}.{at}", np.asarray(at, np.float32)) for at in (0, BINS - 1)]
    zeros = add_weight(graph, f"{name}.zeros", np.zeros(BINS, np.int64))
    line = add_weight(graph, f"{name}.line", np.asarray([-1], np.int64))
    steps = add_node(end, "Mul", [flat, factor], f"{name}.steps")
    steps = add_node(end, "Sub", [steps, offset], f"{name}.from")
    steps = add_node(end, "Floor", [steps], f"{name}.floor")
    steps = add_node(end, "Clip", [steps, *bounds], f"{name}.clip")
    steps = add_node(end, "Reshape", [steps, line], f"{name}.all")
    places = add_node(end, "Cast", [steps], f"{name}.bin", {"to": ir.DataType.INT64.value})
    size = add_node(end, "Shape", [places], f"{name}.size")
    one = ir.tensor(np.ones(1, np.int64))
    ones = add_node(end, "ConstantOfShape", [size], f"{name}.ones", {"value": one})
    counting = {"axis": 0, "reduction": "add"}
    output = add_node(end, "ScatterElements", [zeros, places, ones], f"{name}.counts", counting)
    output.type, output.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([BINS])
    return [output]


def _session(path: Path) -> Any:
    ort = require("onnxruntime", "cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The default order leaves what watches to the end, and every activation in memory till then.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
