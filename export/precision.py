"""Half precision written into a graph's types, as strongly typed engines want it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from puma_edge.calibration.onnx_files import (
    add_lazy_weight,
    add_node,
    load_model,
    remove_unused_weights,
    save_model,
    weight_of,
)
from puma_edge.calibration.ranges import half_peaks
from puma_edge.calibration.readers import text_readings, vision_readings
from puma_edge.errors import PumaError
from puma_edge.export.parity import LARGEST_HALF
from puma_edge.inputs import Batch

# Norms, the L2 norm and angles: squares overflow in half precision, and angles lose their phase.
SINGLE = frozenset(
    {"Cos", "Div", "LayerNormalization", "Pow", "ReduceMean", "ReduceSum", "Sin", "Sqrt"}
)


def to_fp16(source: Path, target: Path) -> None:
    """Write a float32 graph again with float16 weights and arithmetic.

    Norms, rotary angles and the final L2 norm stay float32 between casts. So do the graph's inputs
    and outputs, image tokens among them: every precision takes and gives the same arrays, and a
    half-precision vision graph can feed an INT8 text graph. INT8 weights stay, and give float16.

    Raises:
        PumaError: a weight is beyond float16's range.
    """
    model = load_model(source)
    halved = _Halved(model.graph)
    for node in list(model.graph):
        halved.node(node)
    halved.outputs()
    remove_unused_weights(model.graph)
    if any(node.op_type == "DequantizeLinear" for node in model.graph):
        # Half-precision scales come with 19; nothing else in these graphs changed its meaning.
        model.graph.opset_imports[""] = max(19, model.graph.opset_imports[""])
    save_model(model, target)


def largest_halves(vision: Path, text: Path, batches: Sequence[Batch]) -> dict[str, float]:
    """The largest absolute value that each of two graphs computes in half precision.

    Returns:
        "vision" or "text", and the value's name -> how large it is over all items, each alone.
    """
    tokens: list[Any] = []
    (given,) = (one for one in load_model(text).graph.inputs if one.name == "image_tokens")
    assert given.shape is not None
    width = given.shape[-1]
    assert isinstance(width, int)
    seen = half_peaks(vision, vision_readings(batches), tokens)
    read = half_peaks(text, text_readings(batches, tokens, width))
    found = {}
    for part, peaks in (("vision", seen), ("text", read)):
        name = max(peaks, key=peaks.__getitem__)
        found[f"{part} {name}"] = peaks[name]
    return found


class _Halved:
    """One pass over a graph in order; a value's type is final once its node is done."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def node(self, node: ir.Node) -> None:
        """Give a node's float inputs one type, and its float outputs the same."""
        inputs = [value for value in node.inputs if value is not None and _is_float(value)]
        if node.op_type == "Cast" or not inputs:
            return
        computed = [value for value in inputs if value.const_value is None]
        # What only continues a float32 stretch, as the weight after a norm does, stays in it.
        continues = bool(computed) and all(v.dtype == ir.DataType.FLOAT for v in computed)
        is_single = node.op_type in SINGLE or (continues and node.op_type != "MatMul")
        wanted = ir.DataType.FLOAT if is_single else ir.DataType.FLOAT16
        for place, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and value.dtype != wanted:
                node.replace_input_with(place, self._as(value, wanted, node))
        for value in node.outputs:
            if _is_float(value):
                value.type = ir.TensorType(wanted)

    def outputs(self) -> None:
        """Cast the graph's outputs back, under their names."""
        for place, value in enumerate(self._graph.outputs):
            if value.dtype != ir.DataType.FLOAT16:
                continue
            name, value.name = value.name, f"{value.name}.half"
            attributes = {"to": ir.DataType.FLOAT.value}
            node = ir.node("Cast", [value], attributes=attributes, name=f"{name}.cast")
            result = node.outputs[0]
            result.name, result.shape = name, value.shape
            result.type = ir.TensorType(ir.DataType.FLOAT)
            self._graph.append(node)
            self._graph.outputs[place] = result

    def _as(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        key = (value, wanted)
        if key not in self._cast:
            if value.const_value is not None:
                self._cast[key] = self._constant(value)
            else:
                name = f"{value.name}.{wanted.name.lower()}"
                cast = add_node(before, "Cast", [value], name, {"to": wanted.value})
                cast.type, cast.shape = ir.TensorType(wanted), value.shape
                self._cast[key] = cast
        return self._cast[key]

    def _constant(self, value: ir.Value) -> ir.Value:
        values = weight_of(value)
        assert values is not None
        if np.abs(values).max(initial=0.0) > LARGEST_HALF:
            raise PumaError(
                f"weight {value.name} has values beyond {LARGEST_HALF:.0f}, which float16 cannot "
                "hold; export without fp16"
            )

        # Made again when the file is written: memory never holds all of them.
        def make() -> NDArray[np.float16]:
            again = weight_of(value)
            assert again is not None
            return again.astype(np.float16)

        name = f"{value.name}.half"
        return add_lazy_weight(self._graph, name, ir.DataType.FLOAT16, values.shape, make)


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
