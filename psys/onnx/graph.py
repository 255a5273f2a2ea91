"""A checked ONNX file as a list of nodes and a table of constants: what the importer reads and rewrites."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

Array = NDArray[Any]


@dataclass
class Node:
    """One operation; "" in `inputs` is an optional input that is not given."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op} '{self.name}'"


@dataclass
class Graph:
    """Nodes in an order in which they can be computed. Floats are float32, whatever precision the file has.

    input_shape: as declared; None for a size that is not fixed. metadata: the file's properties.
    """

    nodes: list[Node]
    constants: dict[str, Array]
    input: str
    input_shape: list[int | None]
    input_type: int
    output: str
    opset: int
    metadata: dict[str, str]

    def producer(self, name: str) -> Node | None:
        """The node that computes a value; None for the input and for constants."""
        return next((node for node in self.nodes if name in node.outputs), None)

    def users(self, name: str) -> list[Node]:
        """The nodes that read a value."""
        return [node for node in self.nodes if name in node.inputs]

    def new_name(self, wish: str) -> str:
        """A name that no value has."""
        taken = {name for node in self.nodes for name in node.outputs} | self.constants.keys() | {self.input}
        return next(name for name in (wish, *(f"{wish}_{i}" for i in range(len(taken) + 1))) if name not in taken)

    def prune(self) -> None:
        """Remove what the output does not depend on."""
        needed, kept = {self.output}, []
        for node in reversed(self.nodes):
            if needed & set(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in needed}

    def dependent_on_input(self) -> set[str]:
        """The values that differ from image to image."""
        found = {self.input}
        for node in self.nodes:
            if found & set(node.inputs):
                found.update(node.outputs)
        return found


def graph_of(model: onnx.ModelProto, output: str) -> Graph:
    """The graph that computes `output`, of a model without subgraphs or functions whose initializers are no inputs."""
    (image,) = model.graph.input
    constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    nodes: list[Node] = []
    for number, proto in enumerate(model.graph.node):
        attributes = {each.name: _value(each) for each in proto.attribute}
        inputs = list(proto.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        if proto.op_type == "Constant":
            (value,) = attributes.values()
            constants[proto.output[0]] = value if isinstance(value, np.ndarray) else _python_array(value)
        elif proto.op_type == "Identity" and inputs[0] in constants:
            constants[proto.output[0]] = constants[inputs[0]]
        else:
            name = proto.name or f"{proto.op_type}_{number}"
            nodes.append(Node(proto.op_type, name, inputs, list(proto.output), attributes))
    dims = image.type.tensor_type.shape.dim
    graph = Graph(
        nodes,
        constants,
        image.name,
        [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims],
        image.type.tensor_type.elem_type,
        output,
        next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx")),
        {each.key: each.value for each in model.metadata_props},
    )
    graph.prune()
    return graph


def sanitised(names: Iterable[str]) -> dict[str, str]:
    """For each name one that a parameter of a module can have: without dots, and no attribute of every module."""
    found: dict[str, str] = {}
    taken = {"training", *dir(nn.Module)}
    for name in names:
        base = "".join(sign if sign.isalnum() and sign.isascii() else "_" for sign in name).strip("_") or "value"
        wish, number = base, 1
        while wish in taken:
            number += 1
            wish = f"{base}_{number}"
        taken.add(wish)
        found[name] = wish
    return found


def _value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    return value if isinstance(value, int | float | str | onnx.GraphProto) else list(value)


def _array(tensor: onnx.TensorProto) -> Array:
    array = onnx.numpy_helper.to_array(tensor)
    is_float = array.dtype.kind == "f" or "float" in array.dtype.name
    return np.ascontiguousarray(array, np.float32).reshape(array.shape) if is_float else array


def _python_array(value: float | int | Sequence[float] | Sequence[int]) -> Array:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
