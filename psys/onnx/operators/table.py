"""The table of operators, and the conversions that their functions share.

A value is a Tensor, or an array of numbers on the host. Shapes and what is computed from them stay on the host, so that
torch sees them as Python ints; in an export an array of dtype object holds the symbolic batch size.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[Any]
Value = Tensor | Numbers
Function = TypeVar("Function", bound=Callable[..., Any])


class Unsupported(Exception):  # noqa: N818  a reason, not an error of this program
    """What a node asks for is not supported; the text says what, and what could be done."""


CONTEXT = {"training", "outputs", "device"}
"""What a function may ask for besides inputs and attributes: the network's mode and device, the number of outputs."""


class Operator(NamedTuple):
    """How an operator is computed: its inputs are positional arguments, its attributes are keywords of ONNX's names."""

    function: Callable[..., Any]
    host: frozenset[int]
    """positions of the inputs that are numbers on the host: shapes, axes, bounds"""
    weights: frozenset[int]
    """positions of the inputs that are weights even if they have one element"""
    scalars: bool
    """whether a Python number can take the place of a tensor with one element"""
    attributes: frozenset[str]
    context: frozenset[str]


OPERATORS: dict[str, Operator] = {}


def enter(
    name: str,
    function: Callable[..., Any],
    host: tuple[int, ...] = (),
    weights: tuple[int, ...] = (),
    scalars: bool = False,
) -> None:
    """Enter a function into the table under the name that ONNX has for it."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function of torch itself, which takes no attributes
        parameters = {}.values()
    keywords = frozenset(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
    attributes, context = keywords - CONTEXT, keywords & CONTEXT
    OPERATORS[name] = Operator(function, frozenset(host), frozenset(weights), scalars, attributes, context)


def operator(
    name: str, host: tuple[int, ...] = (), weights: tuple[int, ...] = (), scalars: bool = False
) -> Callable[[Function], Function]:
    """Decorates the function of an operator; see `Operator` for the arguments."""

    def decorate(function: Function) -> Function:
        enter(name, function, host, weights, scalars)
        return function

    return decorate


def ints(numbers: Numbers | None) -> list[int]:
    """The elements as Python ints; in an export some may be symbolic. None: no elements."""
    return [] if numbers is None else list(np.atleast_1d(numbers).tolist())


def number(numbers: Numbers) -> Any:
    """The only element, as a Python number."""
    return numbers.reshape(-1)[0] if numbers.dtype == object else numbers.item()


FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}


def torch_dtype(element_type: int) -> torch.dtype:
    """The dtype that values of an ONNX type have here: all floats are float32. Raises Unsupported for texts, say."""
    if element_type in FLOATS:
        return torch.float32
    integers: dict[int, torch.dtype] = {
        onnx.TensorProto.BOOL: torch.bool,
        onnx.TensorProto.INT64: torch.int64,
        onnx.TensorProto.INT32: torch.int32,
        onnx.TensorProto.INT16: torch.int16,
        onnx.TensorProto.INT8: torch.int8,
        onnx.TensorProto.UINT8: torch.uint8,
    }
    if element_type not in integers:
        raise Unsupported(f"values of type {onnx.TensorProto.DataType.Name(element_type)} are not supported")
    return integers[element_type]
