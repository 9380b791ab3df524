"""The linear layers of a graph, and where a factor on their inputs can be hidden for nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from puma_edge.calibration.onnx_files import (
    add_lazy_weight,
    add_node,
    add_weight,
    shape_of,
    weight_of,
)

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Group:
    """The linear layers that read one tensor, and therefore share its quantisation.

    Attributes:
        input: what they read, [..., channels].
        products: their MatMul nodes, each with a constant weight [channels, out].
    """

    input: ir.Value
    products: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The input's name."""
        return str(self.input.name)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights."""
        return tuple(weight_name(node) for node in self.products)

    def weight_maximum(self) -> Float32:
        """The largest absolute weight [channels] each input channel meets."""
        largest = [np.abs(_weight(node)).max(axis=1) for node in self.products]
        return np.asarray(np.max(largest, axis=0), np.float32)


def weight_name(product: ir.Node) -> str:
    """The name of a linear layer's weight."""
    value = product.inputs[1]
    assert value is not None
    return str(value.name)


def _weight(product: ir.Node) -> Float32:
    values = weight_of(product.inputs[1])
    assert values is not None
    return values


def find_groups(graph: ir.Graph) -> list[Group]:
    """The linear layers in graph order: MatMuls with a constant matrix, never attention's."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if node.op_type != "MatMul" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        constant = node.inputs[1].const_value
        if constant is not None and len(constant.shape) == 2:
            found.setdefault(node.inputs[0], []).append(node)
    return [Group(value, tuple(nodes)) for value, nodes in found.items()]


def norm_of(group: Group) -> ir.Node | None:
    """The node whose constant weight scales this group's input, seen through a reshape.

    A LayerNormalization, or the last Mul of an RMS norm.
    """
    node = group.input.producer()
    if node is not None and node.op_type == "Reshape" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type not in ("LayerNormalization", "Mul"):
        return None
    weight = node.inputs[1]
    is_vector = (
        weight is not None and weight.const_value is not None and len(weight.shape or ()) == 1
    )
    return node if is_vector else None


def norm_width(group: Group) -> int | None:
    """Channels of the norm a group reads, None where it reads none."""
    norm = norm_of(group)
    weight = weight_of(norm.inputs[1]) if norm is not None else None
    return None if weight is None else len(weight)


def divide(group: Group, factors: Float32) -> Group:
    """Divide a group's input by `factors` [channels], where that costs nothing if it can.

    The division goes into the weight of the norm the input comes from, or into the columns of a
    linear layer it is a product with; else it is a node of its own. The group's weights are left
    as they are.

    Returns:
        the group with its new input.
    """
    if not (_divide_norm(group, factors) or _divide_factor(group, factors)):
        return _divide_input(group, factors)
    return group


def _divide_norm(group: Group, factors: Float32) -> bool:
    norm = norm_of(group)
    if norm is None or not _is_only_read_by(group):
        return False
    if group.input is not norm.outputs[0] and len(norm.outputs[0].uses()) != 1:
        return False
    for place in range(1, len(norm.inputs)):
        values = weight_of(norm.inputs[place])
        assert values is not None
        # Where a reshape joins tokens, the factors repeat as the norm's weight does.
        divided = (values / factors[: len(values)]).astype(np.float32)
        norm.replace_input_with(place, add_weight(_graph(norm), _smooth_name(norm, place), divided))
    return True


def _divide_factor(group: Group, factors: Float32) -> bool:
    """A gated MLP: act(gate) * (x @ W) / factors = act(gate) * (x @ (W / factors))."""
    product = group.input.producer()
    if product is None or product.op_type != "Mul" or not _is_only_read_by(group):
        return False
    for value in product.inputs:
        linear = value.producer() if value is not None else None
        if linear is None or linear.op_type != "MatMul" or len(linear.outputs[0].uses()) != 1:
            continue
        weight = linear.inputs[1]
        if weight is not None and weight.const_value is not None:
            linear.replace_input_with(1, _divided(linear, weight, factors))
            return True
    return False


def _divided(linear: ir.Node, weight: ir.Value, factors: Float32) -> ir.Value:
    def make() -> Float32:
        values = weight_of(weight)
        assert values is not None
        return np.asarray(values / factors, np.float32)

    name, shape = _smooth_name(linear, 1), shape_of(weight)
    return add_lazy_weight(_graph(linear), name, ir.DataType.FLOAT, shape, make)


def _divide_input(group: Group, factors: Float32) -> Group:
    first = group.products[0]
    inverse = (1 / factors).astype(np.float32)
    factor = add_weight(_graph(first), f"{group.name}.smooth", inverse)
    value = add_node(first, "Mul", [group.input, factor], f"{group.name}.smoothed")
    for product in group.products:
        product.replace_input_with(0, value)
    return Group(value, group.products)


def _is_only_read_by(group: Group) -> bool:
    return {use.node for use in group.input.uses()} == set(group.products)


def _smooth_name(node: ir.Node, place: int) -> str:
    value = node.inputs[place]
    assert value is not None
    return f"{value.name}.smooth"


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
