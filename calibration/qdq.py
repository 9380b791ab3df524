"""Linear layers and the token table of a graph, rewritten to INT8 in Q/DQ form."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from puma_edge.calibration.linears import Group, weight_name
from puma_edge.calibration.onnx_files import (
    add_lazy_weight,
    add_node,
    add_weight,
    shape_of,
    weight_of,
)

Float32 = NDArray[np.float32]

# Scales that end up in half precision stay among its normal numbers, which lose no digits.
SMALLEST_HALF = 2.0**-14


class Form(str, Enum):
    """For which engines a graph is rounded; the files are named by it."""

    CPU = "int8"  # inputs U8 with a zero point, or one scale per token
    TRT = "int8-trt"  # inputs S8 around zero, one calibrated scale each: what TensorRT takes


# Below this a row is all zeros for every purpose; the quotient must stay finite.
SMALLEST = 1e-12


@dataclass(frozen=True)
class Activation:
    """One scale for a whole tensor: value = (q - zero) * scale, q U8 or, where signed, S8."""

    scale: float
    zero: int
    signed: bool = False

    @classmethod
    def covering(cls, low: float, high: float) -> Activation:
        """The U8 scale that represents zero exactly and everything from `low` to `high`."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, SMALLEST)
        return cls(scale, round(-low / scale))

    @classmethod
    def around_zero(cls, low: float, high: float) -> Activation:
        """The S8 scale with zero point 0 that represents everything from `low` to `high`."""
        scale = np.float16(max(-low, high, 127 * SMALLEST_HALF) / 127)
        return cls(float(scale), 0, signed=True)


# One scale per token: each row is divided by its largest absolute value first.
ROWS = Activation(1 / 127, 128)


class Rewriter:
    """Rewrites one graph in place; the weights are quantised when the file is written."""

    def __init__(self, graph: ir.Graph, form: Form = Form.CPU) -> None:
        """Work on `graph`."""
        self._graph, self._form = graph, form

    def group(self, group: Group, scale: Activation | None, factors: Float32 | None) -> None:
        """Quantise the linear layers of a group.

        Args:
            group: the layers.
            scale: the scale of their input, None for one scale per token.
            factors: [channels], what the input has been divided by already; the weights are
                multiplied by it.
        """
        first, value, largest = group.products[0], group.input, None
        name = f"{group.name}.int8"
        if scale is None:
            largest = self._largest(first, value, name)
            value = add_node(first, "Div", [value, largest], f"{name}.row")
        restored = self._round(first, value, scale or ROWS, name)
        for product in group.products:
            self._product(product, restored, largest, factors)

    def _largest(self, before: ir.Node, value: ir.Value, name: str) -> ir.Value:
        """The largest absolute value of each row: [..., 1]."""
        axes = add_weight(self._graph, f"{name}.axes", np.asarray([-1], np.int64))
        smallest = add_weight(self._graph, f"{name}.smallest", np.asarray(SMALLEST, np.float32))
        size = add_node(before, "Abs", [value], f"{name}.abs")
        largest = add_node(before, "ReduceMax", [size, axes], f"{name}.max")
        return add_node(before, "Max", [largest, smallest], f"{name}.largest")

    def _round(self, before: ir.Node, value: ir.Value, scale: Activation, name: str) -> ir.Value:
        step = add_weight(self._graph, f"{name}.scale", np.asarray(scale.scale, np.float32))
        stored = np.int8 if scale.signed else np.uint8
        zero = add_weight(self._graph, f"{name}.zero", np.asarray(scale.zero, stored))
        rounded = add_node(before, "QuantizeLinear", [value, step, zero], f"{name}.q")
        return add_node(before, "DequantizeLinear", [rounded, step, zero], f"{name}.dq")

    def _product(
        self,
        product: ir.Node,
        value: ir.Value,
        largest: ir.Value | None,
        factors: Float32 | None,
    ) -> None:
        weight, output = product.inputs[1], product.outputs[0]
        assert weight is not None
        name = weight_name(product)
        restored = self._weight(product, weight, factors, f"{name}.int8")
        result = add_node(product, "MatMul", [value, restored], f"{output.name}.int8")
        if largest is not None:
            result = add_node(product, "Mul", [result, largest], f"{output.name}.rows")
        output.replace_all_uses_with(result)
        self._graph.remove(product, safe=True)

    def _weight(
        self, before: ir.Node, weight: ir.Value, factors: Float32 | None, name: str
    ) -> ir.Value:
        """S8 weights with one scale per output channel, dequantised."""

        def smoothed() -> Float32:
            values = weight_of(weight)
            assert values is not None
            return values if factors is None else values * factors[:, None]

        scales = self._scales(np.abs(smoothed()).max(axis=0))
        rows, columns = shape_of(weight)
        stored = add_lazy_weight(
            self._graph, name, ir.DataType.INT8, (rows, columns), lambda: _int8(smoothed(), scales)
        )
        step = add_weight(self._graph, f"{name}.scale", scales)
        zero = add_weight(self._graph, f"{name}.zero", np.zeros(columns, np.int8))
        return add_node(before, "DequantizeLinear", [stored, step, zero], f"{name}.dq", {"axis": 1})

    def _scales(self, largest: Float32) -> Float32:
        """The scale of each row or column, from its largest absolute value."""
        if self._form is Form.TRT:
            halves = np.maximum(largest / 127, SMALLEST_HALF).astype(np.float16)
            return halves.astype(np.float32)
        return np.maximum(largest / 127, SMALLEST).astype(np.float32)

    def tables(self, keep: Collection[str] = ()) -> None:
        """Store the tables that Gather looks up as S8 with one scale per row, but for some."""
        for node in list(self._graph):
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is None or table.const_value is None or len(table.const_value.shape) != 2:
                continue
            if str(table.name) in keep:
                continue
            self._table(node, table, f"{table.name}.int8")

    def _table(self, gather: ir.Node, table: ir.Value, name: str) -> None:
        values, output = weight_of(table), gather.outputs[0]
        assert values is not None
        scales = self._scales(np.abs(values).max(axis=1, keepdims=True))

        def make() -> NDArray[np.int8]:
            again = weight_of(table)
            assert again is not None
            return _int8(again, scales)

        stored = add_lazy_weight(self._graph, name, ir.DataType.INT8, values.shape, make)
        if self._form is Form.TRT:
            result = self._table_for_trt(gather, stored, scales, name)
        else:
            result = self._table_for_cpu(gather, stored, scales, name)
        output.replace_all_uses_with(result)
        self._graph.remove(gather, safe=True)

    def _table_for_cpu(
        self, gather: ir.Node, stored: ir.Value, scales: Float32, name: str
    ) -> ir.Value:
        """Only the rows that are looked up become floats."""
        ids = gather.inputs[1]
        assert ids is not None
        steps = add_weight(self._graph, f"{name}.scale", scales)
        rows = add_node(gather, "Gather", [stored, ids], f"{name}.rows", {"axis": 0})
        rows = add_node(gather, "Cast", [rows], f"{name}.cast", {"to": ir.DataType.FLOAT.value})
        step = add_node(gather, "Gather", [steps, ids], f"{name}.steps", {"axis": 0})
        return add_node(gather, "Mul", [rows, step], f"{name}.dq")

    def _table_for_trt(
        self, gather: ir.Node, stored: ir.Value, scales: Float32, name: str
    ) -> ir.Value:
        """TensorRT takes an INT8 constant nowhere but in a DequantizeLinear."""
        ids = gather.inputs[1]
        assert ids is not None
        steps = add_weight(self._graph, f"{name}.scale", scales[:, 0])
        zero = add_weight(self._graph, f"{name}.zero", np.zeros(len(scales), np.int8))
        restored = add_node(
            gather, "DequantizeLinear", [stored, steps, zero], f"{name}.dq", {"axis": 0}
        )
        return add_node(gather, "Gather", [restored, ids], f"{name}.rows", {"axis": 0})


def _int8(values: Float32, scales: Float32) -> NDArray[np.int8]:
    rounded: NDArray[np.int8] = np.clip(np.rint(values / scales), -127, 127).astype(np.int8)
    return rounded
