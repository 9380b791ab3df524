"""ONNX files: read with the weights left on disk, and written one weight at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# A protobuf message ends at 2 GB, and engines and tools have trouble well before.
INLINE_BYTES = 1_500_000_000

Array = NDArray[Any]


def load_model(path: Path) -> ir.Model:
    """Read a graph; external weights stay on disk until they are asked for."""
    return ir.load(path)


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model, its weights to `NAME.onnx.data` where they take more than 1.5 GB.

    Files of an earlier write are removed first: external data would be appended to them.
    """
    data = path.with_name(path.name + ".data")
    for old in (path, data):
        old.unlink(missing_ok=True)
    weights = [value.const_value for value in model.graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    if size <= INLINE_BYTES:
        # What nothing changed still lies in the file of the model that was read.
        ir.external_data.load_to_model(model)
    ir.save(model, path, external_data=data.name if size > INLINE_BYTES else None)


def add_weight(graph: ir.Graph, name: str, values: Array) -> ir.Value:
    """A new initializer of these values."""
    return _register(graph, ir.tensor(values, name=name))


def add_lazy_weight(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    make: Callable[[], Array],
) -> ir.Value:
    """A new initializer whose values are made when the file is written, and dropped again."""
    return _register(
        graph,
        ir.LazyTensor(lambda: ir.tensor(make()), dtype=dtype, shape=ir.Shape(shape), name=name),
    )


def shape_of(weight: ir.Value) -> tuple[int, ...]:
    """The sizes of an initializer, its values left where they are."""
    assert weight.const_value is not None
    return tuple(weight.const_value.shape.numpy())


def remove_unused_weights(graph: ir.Graph) -> None:
    """Drop the initializers that no node reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tuple(tensor.shape.numpy())),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def add_node(
    before: ir.Node,
    operator: str,
    inputs: list[ir.Value],
    name: str,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Value:
    """The output, called `name` and with its type, of a new node put before another one."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    node = ir.node(operator, inputs, attributes=attributes or {}, name=name)
    output = node.outputs[0]
    output.name = name
    dtype = _output_type(operator, inputs, attributes or {})
    output.type = None if dtype is None else ir.TensorType(dtype)
    graph.insert_before(before, node)
    return output


def _output_type(
    operator: str, inputs: list[ir.Value], attributes: Mapping[str, Any]
) -> ir.DataType | None:
    match operator:
        case "Cast":
            return ir.DataType(attributes["to"])
        case "QuantizeLinear":
            return inputs[2].dtype
        case "DequantizeLinear":
            return inputs[1].dtype
        case "Shape" | "ConstantOfShape":
            return ir.DataType.INT64
        case _:
            return inputs[0].dtype


def weight_of(value: ir.Value | None) -> Array | None:
    """The values of an initializer, None for anything that is computed."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())
