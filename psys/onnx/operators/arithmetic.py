"""Operators on single elements: activations, arithmetic, comparisons."""

import operator as python
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psys.onnx.operators.table import Numbers, Unsupported, enter, number, operator, torch_dtype

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": python.add,
    "And": python.and_,
    "Equal": python.eq,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "Mul": python.mul,
    "Or": python.or_,
    "Sub": python.sub,
    "Xor": python.xor,
}
for _name in _UNARY:
    enter(_name, _UNARY[_name])
for _name in _BINARY:
    enter(_name, _BINARY[_name], scalars=True)


@operator("Identity")
def identity(x: Tensor) -> Tensor:
    """The same value."""
    return x


@operator("Div", scalars=True)
def div(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return a / b if _has_float(a, b) else torch.div(a, b, rounding_mode="trunc")


@operator("Pow", scalars=True)
def power(a: Tensor, b: Tensor) -> Tensor:
    """The result has the type of the base."""
    result = torch.pow(a, b)
    return result.to(a.dtype) if isinstance(a, Tensor) else result


@operator("Mod", scalars=True)
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """fmod: the sign is that of the dividend, otherwise of the divisor."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Max", scalars=True)
def maximum(*values: Tensor) -> Tensor:
    """The largest of several tensors, element by element."""
    return reduce(torch.maximum, _tensors(values))


@operator("Min", scalars=True)
def minimum(*values: Tensor) -> Tensor:
    """The smallest of several tensors, element by element."""
    return reduce(torch.minimum, _tensors(values))


@operator("Sum", scalars=True)
def total(*values: Tensor) -> Tensor:
    """The sum of several tensors."""
    return reduce(torch.add, values)


@operator("Mean", scalars=True)
def mean(*values: Tensor) -> Tensor:
    """The mean of several tensors."""
    return total(*values) / len(values)


@operator("Where", scalars=True)
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Elements of a where the condition holds, else of b."""
    return torch.where(condition, a, b)


@operator("Clip", host=(1, 2))
def clip(x: Tensor, low: Numbers | None = None, high: Numbers | None = None) -> Tensor:
    """Bounds are numbers, so that none of them is trained."""
    if low is None and high is None:
        return x
    return torch.clamp(x, None if low is None else number(low), None if high is None else number(high))


@operator("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """All kinds of floats are float32 here."""
    return x.to(torch_dtype(to))


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """x in the type of another value."""
    return x.to(like.dtype)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Negative elements times alpha."""
    return F.leaky_relu(x, alpha)


@operator("PRelu", weights=(1,))
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Negative elements times a slope, which is broadcast to x."""
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Exponential linear unit."""
    return F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Continuously differentiable exponential linear unit."""
    return F.celu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """Scaled exponential linear unit."""
    return gamma * F.elu(x, alpha)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit."""
    return F.gelu(x, approximate=approximate)


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x times sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Between 0 and 1, linear around 0."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Elements above alpha, 0 elsewhere."""
    return torch.where(x > alpha, x, 0.0)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Elements nearer to 0 than lambd are 0, others move towards 0 by the bias."""
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Infinite elements of the chosen signs."""
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


@operator("Softmax")
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Probabilities along an axis."""
    return torch.softmax(x, axis)


@operator("LogSoftmax")
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithms of the probabilities along an axis."""
    return torch.log_softmax(x, axis)


@operator("Dropout", host=(1, 2))
def dropout(
    x: Tensor, ratio: Numbers | None = None, training_mode: Numbers | None = None, *, seed: int = 0, training: bool
) -> Tensor:
    """Drops elements while this network trains, whatever mode the file was exported in."""
    return F.dropout(x, 0.5 if ratio is None else float(number(ratio)), training)


def _has_float(*values: Any) -> bool:
    return any(value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float) for value in values)


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    """Values, of which some may be Python numbers, as tensors of one type."""
    like = next((value for value in values if isinstance(value, Tensor)), None)
    if like is None:
        raise Unsupported("an operator of tensors got none")
    return [value if isinstance(value, Tensor) else torch.full_like(like, value) for value in values]
