"""What the inputs of linear layers look like over calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from puma_edge.calibration.linears import Group
from puma_edge.calibration.onnx_files import add_node, add_weight, load_model, shape_of
from puma_edge.errors import PumaError, require
from puma_edge.feeds import Feeds

Float32 = NDArray[np.float32]


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
    def largest(self) -> Float32:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def observe(
    path: Path, groups: Sequence[Group], readings: Iterable[Feeds], outputs: list[Any] | None = None
) -> dict[str, ChannelRange]:
    """Run a graph over calibration data and watch the inputs of `groups`.

    The graph itself reduces each input to two rows, so that memory does not grow with the data.

    Args:
        path: the float32 graph; a temporary graph is written beside it.
        groups: the linear layers to watch.
        readings: feeds without padding.
        outputs: where given, the graph's own output for each reading is appended.

    Returns:
        the range of each group, by its name.

    Raises:
        PumaError: there are no readings, or an activation is not finite.
    """
    watching = path.with_name(f"watch.{path.name}")
    try:
        # Weights beside the graph stay there: both files stand in one folder.
        ir.save(_watched(path, [group.name for group in groups]), watching)
        session = _session(watching)
        found: dict[str, ChannelRange] = {}
        for feeds in readings:
            first, *rows = session.run(None, feeds)
            if outputs is not None:
                outputs.append(first)
            for group, low, high in zip(groups, rows[::2], rows[1::2], strict=True):
                seen = ChannelRange(low, high)
                found[group.name] = found[group.name] | seen if group.name in found else seen
    finally:
        watching.unlink(missing_ok=True)
    broken = [name for name, seen in found.items() if not np.isfinite(seen.largest).all()]
    if broken:
        raise PumaError(f"{path} has activations that are not finite: {', '.join(broken[:3])}")
    return found


def _watched(path: Path, names: Sequence[str]) -> ir.Model:
    """The graph with the least and the greatest value of each channel as further outputs."""
    model = load_model(path)
    graph = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    rows = add_weight(graph, "watch.rows", np.asarray([0], np.int64))
    end = graph[-1]
    for name in names:
        value = values[name]
        product = next(use.node for use in value.uses() if use.node.op_type == "MatMul")
        weight = product.inputs[1]
        assert weight is not None
        channels = shape_of(weight)[0]
        shape = add_weight(graph, f"watch.{name}.shape", np.asarray([-1, channels], np.int64))
        flat = add_node(end, "Reshape", [value, shape], f"watch.{name}")
        for operator in ("ReduceMin", "ReduceMax"):
            output = add_node(
                end, operator, [flat, rows], f"watch.{name}.{operator}", {"keepdims": 0}
            )
            output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([channels])
            graph.outputs.append(output)
    graph.sort()
    return model


def _session(path: Path) -> Any:
    ort = require("onnxruntime", "cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
