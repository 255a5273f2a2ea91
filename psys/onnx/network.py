"""A graph of ONNX operators as a torch module that trains."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from psys.errors import PsysError
from psys.onnx.graph import Array, Graph, Node, sanitised
from psys.onnx.operators import HOST_OPERATORS, OPERATORS, Operator, Unsupported
from psys.onnx.operators.table import Value

_STATISTICS = (3, 4)  # inputs of BatchNormalization: running mean and variance
_MASKED = -100.0  # additive masks of attention have only zeros and such numbers or lower ones


class Step(NamedTuple):
    """A node with how it is computed."""

    node: Node
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    forget: tuple[str, ...]
    """values that no later step reads"""


class Network(nn.Module):
    """Computes a graph, image batch in, output out: its weights are parameters, running statistics are buffers.

    Numbers that are no weights (bounds, exponents, indices, masks) are not trained. Raises PsysError for a node that
    torch cannot compute here: which one, and what could be done.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        _check_operators(graph)
        graph.prune()
        self._input, self._output = graph.input, graph.output
        self._prefix: str | None = None
        self._see: Callable[..., None] | None = None
        graph.nodes = [_own_statistics(graph, node) for node in graph.nodes]
        self._untie(graph)
        self._attributes = sanitised(graph.constants)
        self._host: dict[str, Array] = {}
        self._tensors: dict[str, str] = {}  # names of constants: attributes of this module
        fixed = _input_normalisation(graph)
        uses: dict[str, list[tuple[Node, int]]] = defaultdict(list)
        for node in graph.nodes:
            for place, name in enumerate(node.inputs):
                uses[name].append((node, place))
        for name, array in graph.constants.items():
            self._add_constant(name, array, uses[name], name in fixed)
        self.steps = _steps(graph)

    def watch(self, prefix: str | None, see: Callable[..., None] | None) -> None:
        """Call `see` with the inputs of each node whose name begins with `prefix`, before it is computed."""
        self._prefix, self._see = prefix, see

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) images as the file declares them -> the file's output."""
        values: dict[str, Value] = {self._input: x}
        for step in self.steps:
            if self._see and step.node.name.startswith(self._prefix or ""):
                self._see(*(self.find(name, values) for name in step.inputs))
            self.compute(step, values, x.device)
            for name in step.forget:
                values.pop(name, None)
        output = values[self._output]
        return output if isinstance(output, Tensor) else torch.as_tensor(output, device=x.device)

    @torch.no_grad()
    def reinitialise(self) -> None:
        """Draw all weights anew: layers as He et al. 2015 do, scales 1, biases 0, statistics as before any image."""
        roles = {name: (step, place) for step in self.steps for place, name in enumerate(step.inputs)}
        for name, attribute in self._tensors.items():
            tensor: Tensor = getattr(self, attribute)
            if not tensor.is_floating_point() or name not in roles:
                continue
            step, place = roles[name]
            op, trained = step.node.op, isinstance(tensor, nn.Parameter)
            if op == "BatchNormalization" and place in _STATISTICS:
                tensor.fill_(float(place == 4))
            elif trained and op.endswith("Normalization"):
                tensor.fill_(float(place == 1))
            elif trained and op in ("Conv", "ConvTranspose", "Gemm", "MatMul") and tensor.dim() >= 2:
                flipped = op == "MatMul" or (op == "Gemm" and not step.node.attributes.get("transB"))
                fan_in = tensor.shape[-2] if flipped else tensor[0].numel()
                nn.init.normal_(tensor, std=(2 / fan_in) ** 0.5)
            elif trained:
                one = op in ("Mul", "Div")
                nn.init.ones_(tensor) if one else nn.init.zeros_(tensor) if tensor.dim() < 2 else nn.init.normal_(
                    tensor, std=0.02
                )

    def compute(self, step: Step, values: dict[str, Value], device: torch.device) -> None:
        """Add the step's outputs to `values`. Raises PsysError that names the node if it cannot be computed."""
        node = step.node
        try:
            result = self._result(step, [self.find(name, values) for name in step.inputs], device)
        except PsysError:
            raise
        except Unsupported as reason:
            raise PsysError(f"node {node}: {reason}") from None
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            if torch.compiler.is_compiling():
                raise
            raise PsysError(f"node {node} cannot be computed: {' '.join(str(error).split())[:200]}") from error
        results = result if isinstance(result, tuple | list) else (result,)
        if len(step.outputs) > len(results) and any(step.outputs[len(results) :]):
            raise PsysError(f"node {node}: its output '{step.outputs[len(results)]}' is not supported")
        values.update(zip(step.outputs, results, strict=False))

    def _result(self, step: Step, inputs: list[Value | None], device: torch.device) -> Any:
        node, operator = step.node, step.operator
        if node.op in ("Shape", "Size"):
            return _shape(node, inputs[0])
        keywords = dict(node.attributes)
        given = {"training": self.training, "outputs": len(step.outputs), "device": device}
        keywords |= {name: given[name] for name in operator.context}
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not tensors and (host := HOST_OPERATORS.get(node.op)):
            host_keywords = {name: value for name, value in keywords.items() if name not in ("training", "device")}
            result = host(*inputs, **host_keywords)
            if result is not NotImplemented:
                return list(map(_known, result)) if isinstance(result, list) else _known(result)
        rank = max((tensor.dim() for tensor in tensors), default=-1)
        arguments = [self._argument(step, place, value, rank, device) for place, value in enumerate(inputs)]
        return operator.function(*arguments, **keywords)

    def find(self, name: str, values: dict[str, Value]) -> Value | None:
        """A computed value or a constant; None for an input that is not given."""
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self._host:
            return self._host[name]
        tensor: Tensor = getattr(self, self._tensors[name])
        return tensor

    def with_numbers(self, step: Step, place: int, name: str, numbers: Array) -> Step:
        """The step with other numbers of the host as the input at `place`."""
        self._host[name] = numbers
        return step._replace(inputs=(*step.inputs[:place], name, *step.inputs[place + 1 :]))

    def _argument(self, step: Step, place: int, value: Value | None, rank: int, device: torch.device) -> Any:
        """A value as its operator wants it: a tensor, numbers on the host, or a Python number."""
        if place in step.operator.host:
            if isinstance(value, Tensor):
                what = "a shape, an axis or a bound that is computed from pixels cannot be trained through"
                raise Unsupported(f"input {place}: {what}; export the model for one image size")
            return value
        if value is None or isinstance(value, Tensor):
            return value
        if step.operator.scalars and value.size == 1 and value.ndim <= max(rank, 0):
            return value.reshape(-1)[0] if value.dtype == object else value.item()
        if (name := step.inputs[place]) in self._tensors:
            return getattr(self, self._tensors[name])
        if value.dtype == object:
            return torch.stack([torch.as_tensor(each, device=device) for each in value.ravel()]).reshape(value.shape)
        return torch.as_tensor(value.astype(np.float32) if value.dtype.kind == "f" else value, device=device)

    def _add_constant(self, name: str, array: Array, uses: Sequence[tuple[Node, int]], fixed: bool) -> None:
        attribute = self._attributes[name]
        on_host = all(place in OPERATORS[node.op].host for node, place in uses)
        is_weight = any(place in OPERATORS[node.op].weights for node, place in uses)
        statistics = all(node.op == "BatchNormalization" and place in _STATISTICS for node, place in uses)
        if array.dtype == np.float32 and not on_host and (is_weight or array.size > 1):
            tensor = torch.from_numpy(array.copy())
            self._tensors[name] = attribute
            if statistics or fixed or _is_mask(array):
                self.register_buffer(attribute, tensor)
            else:
                self.register_parameter(attribute, nn.Parameter(tensor))
            return
        self._host[name] = array
        if array.size > 1 and not on_host:
            self._tensors[name] = attribute
            self.register_buffer(attribute, torch.from_numpy(array.copy()))

    @staticmethod
    def _untie(graph: Graph) -> None:
        """Give each user of a vector of equal elements its own: exporters merge all scales of 1 and biases of 0."""
        seen: set[str] = set()
        for node in graph.nodes:
            for place, name in enumerate(node.inputs):
                array = graph.constants.get(name)
                if array is None or array.ndim != 1 or array.dtype != np.float32 or array.size < 2:
                    continue
                if name in seen and (array == array[0]).all():
                    node.inputs[place] = own = graph.new_name(name)
                    graph.constants[own] = array
                seen.add(name)


def _check_operators(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op in ("Shape", "Size"):
            continue
        if node.op not in OPERATORS:
            advice = (
                "export the model without control flow" if node.op in ("If", "Loop", "Scan") else "replace the node"
            )
            raise PsysError(f"node {node}: operator {node.op} is not supported; {advice} by operators that are")
        if unknown := node.attributes.keys() - OPERATORS[node.op].attributes:
            raise PsysError(f"node {node}: attribute '{min(unknown)}' of operator {node.op} is not supported")


def _own_statistics(graph: Graph, node: Node) -> Node:
    """A batch norm with running statistics of its own; or, of weights, one without any."""
    if node.op != "BatchNormalization":
        return node
    if node.inputs[0] not in graph.dependent_on_input() and node.attributes.get("training_mode"):
        return Node("WeightStandardization", node.name, node.inputs[:3], node.outputs[:1], node.attributes)
    inputs = list(node.inputs)
    for place in _STATISTICS:
        if (array := graph.constants.get(inputs[place])) is None:
            continue
        if len([user for user in graph.nodes for name in user.inputs if name == inputs[place]]) > 1:
            inputs[place] = graph.new_name(inputs[place])
            graph.constants[inputs[place]] = array
    return Node(node.op, node.name, inputs, node.outputs[:1], node.attributes)


def _input_normalisation(graph: Graph) -> set[str]:
    """Constants that scale the pixels of the input: a mean and a standard deviation of channels are no weights."""
    found: set[str] = set()
    value = graph.input
    while len(users := graph.users(value)) == 1:
        (node,) = users
        if node.op not in ("Cast", "Transpose", "Identity", "Add", "Sub", "Mul", "Div"):
            break
        others = [name for name in node.inputs if name != value]
        if any(name not in graph.constants or graph.constants[name].size > 4 for name in others):
            break
        found.update(others)
        value = node.outputs[0]
    return found


def _is_mask(array: Array) -> bool:
    """Whether an array is an additive mask: zeros, and one number as low as masks have it."""
    values = np.unique(array) if array.ndim > 1 else array[:0]
    return len(values) == 2 and values[1] == 0 and values[0] <= _MASKED


def _known(array: Array) -> Array:
    """An array of Python numbers, none of which is symbolic, with their own dtype."""
    if array.dtype != object or not all(type(value) in (int, float) for value in array.ravel()):
        return array
    return array.astype(np.int64 if all(type(value) is int for value in array.ravel()) else np.float32)


def _shape(node: Node, value: Value | None) -> Array:
    assert value is not None
    if node.op == "Size":
        return np.asarray(value.numel() if isinstance(value, Tensor) else value.size, np.int64)
    sizes = list(value.shape)[node.attributes.get("start", 0) : node.attributes.get("end")]
    if all(isinstance(size, int) for size in sizes):
        return np.array(sizes, np.int64)
    array = np.empty(len(sizes), object)
    array[:] = sizes
    return array


def _steps(graph: Graph) -> tuple[Step, ...]:
    last = {name: number for number, node in enumerate(graph.nodes) for name in node.inputs}
    computed = {graph.input} | {name for node in graph.nodes for name in node.outputs}
    steps = []
    for number, node in enumerate(graph.nodes):
        forget = {name for name in node.inputs if last[name] == number and name in computed and name != graph.output}
        forget |= {name for name in node.outputs if name and name not in last and name != graph.output}
        operator = OPERATORS.get(node.op, OPERATORS["Identity"])
        steps.append(Step(node, operator, tuple(node.inputs), tuple(node.outputs), tuple(sorted(forget))))
    return tuple(steps)
