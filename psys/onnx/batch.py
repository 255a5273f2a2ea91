"""Frees a graph from the batch size that it was exported with: constants of Reshape nodes hide it."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch

from psys.errors import PsysError
from psys.onnx.graph import Graph, Node
from psys.onnx.network import Network
from psys.onnx.operators.table import Numbers, Value, ints

_NUMBERS = {"Reshape": 1, "Expand": 1, "Slice": 2}  # operators whose input of that number may name the batch size
_TO_THE_END = 2**63 - 1


def free_batch(graph: Graph, shape: Sequence[int]) -> list[int]:
    """Rewrite the shapes that name the batch size of `shape`, the input's own. Shapes of the output follow.

    Returns the output's shape for `shape`. Nothing is computed: tensors are on torch's meta device. Raises PsysError
    for a node that cannot be computed, and if the file cannot take another number of images.
    """
    network = copy.deepcopy(Network(graph)).to("meta").eval()
    device = torch.device("meta")
    one, two = ({graph.input: torch.empty((n * shape[0], *shape[1:]), device=device)} for n in (1, 2))
    first: dict[str, Value] = {**one}
    second: dict[str, Value] = {**two}
    outer = {graph.input: 1}  # of each value that has a batch: elements before the batch within its axis
    with torch.no_grad():
        for step in network.steps:
            network.compute(step, first, device)
            outer[step.outputs[0]] = next((outer[name] for name in step.inputs if name in outer), 1)
            before, after = first.get(step.inputs[0]), second.get(step.inputs[0])
            place = _NUMBERS.get(step.node.op)
            if place is not None and before is not None and after is not None:
                asked = [ints(_numbers(network.find(name, first))) for name in step.inputs[1:]]
                shapes = list(before.shape), list(after.shape), list(first[step.outputs[0]].shape)
                freed: list[int] | None
                if step.node.op == "Reshape":
                    freed, outer[step.outputs[0]] = _freed(asked[0], *shapes, outer[step.outputs[0]], shape[0])
                elif step.node.op == "Expand":
                    freed = _freed_expansion(asked[0], *shapes, shape[0])
                else:
                    freed = _freed_ends(asked, *shapes)
                if freed is not None:
                    name = graph.new_name(f"{step.inputs[place]}_free")
                    graph.constants[name] = np.array(freed, np.int64)
                    _node_of(graph, step.outputs[0]).inputs[place] = name
                    step = network.with_numbers(step, place, name, graph.constants[name])
            network.compute(step, second, device)
            for name in step.forget:
                first.pop(name, None)
                second.pop(name, None)
    output, doubled = list(first[graph.output].shape), list(second[graph.output].shape)
    if not output or doubled[0] != 2 * output[0]:
        raise PsysError(
            f"the file computes only {shape[0]} images at a time: export the model with a dynamic batch size"
        )
    return output


def _freed(
    asked: Sequence[int], before: Sequence[int], after: Sequence[int], made: Sequence[int], within: int, batch: int
) -> tuple[list[int] | None, int]:
    """The shape to ask for instead of `asked`, None if that is right for any batch; and `within` of the result.

    before, after: the input's shape for `batch` images and twice as many; made: the output's for `batch` images;
    within: elements before the batch within the input's axis that holds the batch, perhaps merged with others.
    """
    differing = [axis for axis, (b, a) in enumerate(zip(before, after, strict=True)) if b != a]
    if len(differing) != 1:
        return None, within
    (axis,) = differing
    # What lies before the batch in memory, and what follows its axis: a reshape keeps the order of elements.
    outer, inner = math.prod(before[:axis]) * within, math.prod(before[axis + 1 :])
    found: list[tuple[int, int]] = []
    for place, size in enumerate(made):
        above, below = math.prod(made[:place]), math.prod(made[place + 1 :])
        if not above or outer % above or size % (outer // above * batch):
            continue
        if above == outer and size == batch:
            rank = 0  # an axis of the batch alone
        elif len(made) == len(before) and place == axis:
            rank = 1
        elif below == inner:
            rank = 2
        else:
            rank = 3 if above == outer else 4
        found.append((rank, place))
    if not found:
        return None, within
    place = min(found)[1]
    within = outer // math.prod(made[:place])
    if asked[place] == -1 or (asked[place] == 0 and place == axis):
        return None, within
    freed = list(made)
    freed[place] = -1
    return freed, within


def _freed_ends(
    asked: Sequence[Sequence[int]], before: Sequence[int], after: Sequence[int], made: Sequence[int]
) -> list[int] | None:
    """The ends of a Slice that takes the whole axis of the batch; None if it does not."""
    _, ends, *more = asked
    axes = [axis % len(before) for axis in (more[0] if more else range(len(ends)))]
    whole = [i for i, axis in enumerate(axes) if before[axis] != after[axis] and made[axis] == before[axis]]
    return [_TO_THE_END if i in whole else end for i, end in enumerate(ends)] if whole else None


def _freed_expansion(
    asked: Sequence[int], before: Sequence[int], after: Sequence[int], made: Sequence[int], batch: int
) -> list[int] | None:
    """The shape for what is repeated for each image of a fixed batch, as a class token: Concat repeats it."""
    fixed = list(before) == list(after) and len(before) == len(asked) and before[0] == 1
    return [1, *asked[1:]] if fixed and asked[0] == batch > 1 else None


def _numbers(value: Value | None) -> Numbers | None:
    return value if isinstance(value, np.ndarray) else None


def _node_of(graph: Graph, output: str) -> Node:
    node = graph.producer(output)
    assert node is not None
    return node
