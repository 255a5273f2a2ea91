"""The end of a classifier's graph: its probabilities, and the layer that scores the classes."""

import math

import numpy as np
import torch

from psys.errors import PsysError
from psys.onnx.graph import Array, Graph, Node

_SHAPES = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze")
_BETWEEN = (*_SHAPES, "Relu", "Clip", "GlobalAveragePool", "ReduceMean", "AveragePool", "Dropout", "Transpose")
_PROBABILITIES = ("Softmax", "LogSoftmax", "Sigmoid")


def drop_probabilities(graph: Graph) -> str | None:
    """Make the scores before a final softmax or sigmoid the output; the operator that was dropped."""
    name, dropped = graph.output, None
    while (node := graph.producer(name)) is not None:
        scores = _scores_of(graph, node)
        if scores is not None:
            dropped = node.op if node.op in _PROBABILITIES else "Softmax"
            for user in graph.users(node.outputs[0]):
                user.inputs = [scores if each == node.outputs[0] else each for each in user.inputs]
            graph.output = scores if graph.output == node.outputs[0] else graph.output
            name = scores
        elif node.op in _SHAPES or (node.op == "Log" and _before(graph, node) in ("Softmax", "Div")):
            name = node.inputs[0]
            if node.op == "Log" and graph.output == node.outputs[0]:
                graph.output = name
        else:
            break
    graph.prune()
    return dropped


def replace_head(graph: Graph, classes: int, wanted: int) -> None:
    """Give the last layer, or all layers whose scores are added, `wanted` new classes instead of `classes`.

    The weights are drawn as torch's layers draw them. Raises PsysError if the layer cannot be found.
    """
    if not _replace(graph, graph.output, classes, wanted):
        raise PsysError(
            f"the model scores {classes} classes, the images have {wanted}, and the layer that scores them was not "
            "found: export the model with the right number of classes"
        )
    graph.prune()


def _replace(graph: Graph, name: str, classes: int, wanted: int) -> bool:
    node = graph.producer(name)
    if node is None:
        return False
    fixed = [place for place, each in enumerate(node.inputs) if _constant(graph, each) is not None]
    if node.op in ("Gemm", "MatMul", "Conv") and 1 in fixed and 0 not in fixed:
        return _replace_layer(graph, node, classes, wanted)
    if node.op in ("Add", "Sub", "Mul", "Div") and len(fixed) < 2:
        for place in fixed:
            array = _constant(graph, node.inputs[place])
            assert array is not None
            if array.size > 1 and not _renew(graph, node, place, array, classes, wanted, 0.0):
                return False
        return all(_replace(graph, each, classes, wanted) for i, each in enumerate(node.inputs) if i not in fixed)
    if node.op in ("Sum", "Mean"):
        return all(_replace(graph, each, classes, wanted) for each in node.inputs)
    if node.op not in _BETWEEN:
        return False
    if node.op == "Reshape" and (shape := graph.constants.get(node.inputs[1])) is not None and classes in shape:
        node.inputs[1] = graph.new_name(f"{node.inputs[1]}_classes")
        graph.constants[node.inputs[1]] = np.where(shape == classes, wanted, shape)
    return _replace(graph, node.inputs[0], classes, wanted)


def _replace_layer(graph: Graph, node: Node, classes: int, wanted: int) -> bool:
    weight = _constant(graph, node.inputs[1])
    assert weight is not None
    axis = 0 if node.op == "Conv" or (node.op == "Gemm" and node.attributes.get("transB")) else weight.ndim - 1
    if weight.shape[axis] != classes or node.attributes.get("group", 1) != 1:
        return False
    bound = 1 / math.sqrt(weight.size / classes)
    _renew(graph, node, 1, weight, classes, wanted, bound, axis)
    if len(node.inputs) > 2 and (bias := _constant(graph, node.inputs[2])) is not None and bias.size == classes:
        _renew(graph, node, 2, bias, classes, wanted, bound)
    return True


def _renew(
    graph: Graph, node: Node, place: int, array: Array, classes: int, wanted: int, bound: float, axis: int | None = None
) -> bool:
    """Put another constant with `wanted` classes in its place, drawn from -bound to bound."""
    if axis is None:
        axis = next((each for each in reversed(range(array.ndim)) if array.shape[each] == classes), None)
    if axis is None:
        return False
    shape = [*array.shape[:axis], wanted, *array.shape[axis + 1 :]]
    node.inputs[place] = graph.new_name(f"{node.inputs[place]}_new")
    values = (
        torch.empty(shape).uniform_(-bound, bound) if bound else torch.full(shape, float(node.op in ("Mul", "Div")))
    )
    graph.constants[node.inputs[place]] = values.numpy()
    return True


def _constant(graph: Graph, name: str) -> Array | None:
    """A constant, also behind nodes that arrange it anew: its values as they arrive."""
    if name in graph.constants:
        return graph.constants[name]
    node = graph.producer(name)
    if node is not None and node.op in ("Transpose", "Identity", "Cast") and node.inputs[0] in graph.constants:
        array = graph.constants[node.inputs[0]]
        return np.transpose(array, node.attributes.get("perm")) if node.op == "Transpose" else array
    return None


def _scores_of(graph: Graph, node: Node) -> str | None:
    """The scores that a node turns into probabilities, in one operator or with several; None if it does not."""
    if node.op in _PROBABILITIES:
        return node.inputs[0]
    if node.op != "Div":
        return None
    powers, total = graph.producer(node.inputs[0]), graph.producer(node.inputs[1])
    if powers is None or total is None or (powers.op, total.op) != ("Exp", "ReduceSum"):
        return None
    if total.inputs[0] != node.inputs[0]:
        return None
    shifted = graph.producer(powers.inputs[0])
    return shifted.inputs[0] if shifted is not None and shifted.op == "Sub" else powers.inputs[0]


def _before(graph: Graph, node: Node) -> str | None:
    producer = graph.producer(node.inputs[0])
    return None if producer is None else producer.op
