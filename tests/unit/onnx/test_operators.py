"""Every operator of the table against ONNX Runtime."""

import re
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from psys.onnx.graph import graph_of
from psys.onnx.network import Network
from psys.onnx.operators import OPERATORS
from tests.support.onnx_graphs import model_of, run_onnx

Array = NDArray[Any]
IMAGES, ROWS = (2, 4, 7, 6), (2, 3, 5)


class Case(NamedTuple):
    """A node of the operator with an input x of a shape, and then constants; None: that input is not given."""

    op: str
    shape: tuple[int, ...] = IMAGES
    constants: tuple[Array | None, ...] = ()
    attributes: dict[str, Any] = {}  # noqa: RUF012  never changed
    opset: int = 20
    positive: bool = False  # x between 0.1 and 0.9
    x_last: bool = False  # the constants come before x

    def __str__(self) -> str:
        shown = [
            f"{name}={value}" for name, value in self.attributes.items() if not isinstance(value, onnx.TensorProto)
        ]
        return "-".join([self.op, *shown]).replace(" ", "")


def f(*shape: int) -> Array:
    """A weight of that shape."""
    return np.random.default_rng(sum(shape) + 1).standard_normal(shape).astype(np.float32)


def i(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


UNARY = "Abs Asinh Atan Ceil Cos Cosh Erf Exp Floor HardSwish Identity IsNaN Mish Neg Relu Round Sigmoid Sign Sin Sinh"
UNARY += " Softplus Softsign Sqrt Tan Tanh Reciprocal Log Acos Asin Atanh"
NARROW = {"Sqrt", "Log", "Acos", "Asin", "Atanh", "Reciprocal", "Acosh"}
REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"
POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [3, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [2, 2], "auto_pad": "VALID"},
    {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
]
CONVOLUTIONS: list[tuple[dict[str, Any], Array]] = [
    ({"kernel_shape": [3, 3]}, f(6, 4, 3, 3)),
    ({"pads": [1, 0, 2, 1], "strides": [2, 1]}, f(6, 4, 3, 3)),
    ({"pads": [1, 1, 1, 1], "dilations": [2, 1]}, f(6, 4, 3, 3)),
    ({"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}, f(8, 1, 3, 3)),
    ({"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 2]}, f(6, 2, 2, 3)),
    ({"auto_pad": "VALID"}, f(1, 4, 1, 1)),
]
TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"strides": [2, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 1]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "output_shape": [14, 12]},
    {"group": 2, "dilations": [1, 2]},
]
RESIZES: list[tuple[dict[str, Any], Array | None, Array | None]] = [
    ({}, scalar(1) * np.array([1, 1, 2, 2], np.float32), None),
    ({"mode": "linear"}, None, i(2, 4, 14, 9)),
    ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, None, i(2, 4, 13, 11)),
    ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, np.array([1, 1, 2, 0.5], np.float32), None),
    ({"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, None, i(2, 4, 1, 3)),
    ({"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, None, i(2, 4, 10, 4)),
    ({"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}, None, i(2, 4, 14, 3)),
    ({"nearest_mode": "ceil", "axes": [2, 3]}, np.array([1.5, 2], np.float32), None),
]
PADDINGS = ("reflect", "edge", "constant")
NORM = (f(4), f(4), f(4), abs(f(4)))

CASES = [
    *(Case(op, positive=op in NARROW) for op in UNARY.split()),
    *(Case(op, constants=(f(4, 1, 1),)) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean", "PRelu")),
    *(Case(op, constants=(scalar(0.5),)) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Sum", "Mean")),
    *(Case(op, constants=(scalar(2.0),), x_last=True, positive=True) for op in ("Sub", "Div", "Pow", "Max")),
    *(Case(op, constants=(f(7, 6),)) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    Case("Mod", constants=(np.array([0.7], np.float32),), attributes={"fmod": 1}),
    Case("Pow", constants=(f(6),), positive=True),
    Case("PRelu", constants=(np.array([0.3], np.float32),)),
    *(Case("Clip", constants=bounds) for bounds in ((scalar(-0.5), scalar(0.5)), (scalar(0),), (None, scalar(0.2)))),
    Case("Clip"),
    Case("LeakyRelu", attributes={"alpha": 0.2}),
    Case("Elu", attributes={"alpha": 0.7}),
    Case("Celu", attributes={"alpha": 1.5}),
    Case("Selu"),
    *(Case("Gelu", attributes={"approximate": kind}) for kind in ("none", "tanh")),
    Case("HardSigmoid"),
    Case("HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}),
    Case("ThresholdedRelu", attributes={"alpha": 0.4}),
    Case("Shrink", attributes={"lambd": 0.4, "bias": 0.1}),
    Case("IsInf"),
    *(Case(op, attributes={"axis": axis}) for op in ("Softmax", "LogSoftmax") for axis in (-1, 1)),
    Case("Dropout", constants=(scalar(0.4),)),
    Case("Cast", attributes={"to": onnx.TensorProto.INT64}),
    *(Case("Conv", constants=(w, *b), attributes=a) for a, w in CONVOLUTIONS for b in ((), (f(w.shape[0]),))),
    Case("Conv", (2, 3, 9), (f(4, 3, 3), f(4)), {"pads": [0, 2], "strides": [2]}),
    *(Case("ConvTranspose", constants=(f(4, 3, 3, 2), f(3)), attributes=a) for a in TRANSPOSED[:4]),
    Case("ConvTranspose", constants=(f(4, 3, 3, 2),), attributes=TRANSPOSED[4]),
    *(Case("MaxPool", attributes=a) for a in POOLS),
    Case("MaxPool", attributes={"kernel_shape": [2, 2], "dilations": [2, 2]}),
    *(Case("AveragePool", attributes=a | {"count_include_pad": count}) for a in POOLS for count in (0, 1)),
    *(Case("LpPool", attributes=a) for a in POOLS[:4]),
    *(Case(op) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    *(Case("BatchNormalization", constants=NORM, attributes={"epsilon": e}) for e in (1e-5, 0.1)),
    Case("InstanceNormalization", constants=(f(4), f(4)), attributes={"epsilon": 1e-3}),
    *(Case("LayerNormalization", ROWS, (f(5), *b)) for b in ((), (f(5),))),
    Case("LayerNormalization", ROWS, (f(3, 5), f(3, 5)), {"axis": 1}),
    Case("LayerNormalization", constants=(f(1), f(1)), attributes={"axis": 1}),
    Case("RMSNormalization", ROWS, (f(5),), opset=23),
    Case("GroupNormalization", constants=(f(4), f(4)), attributes={"num_groups": 2}, opset=21),
    *(Case("LpNormalization", attributes={"axis": 1, "p": p}) for p in (1, 2)),
    Case("MeanVarianceNormalization"),
    *(Case("LRN", attributes={"size": size, "alpha": 0.1}) for size in (3, 5)),
    Case("MatMul", ROWS, (f(5, 4),)),
    Case("MatMul", ROWS, (f(4, 3),), x_last=True),
    *(Case("Gemm", (3, 5), (f(5, 4), *c), {"alpha": 0.5, "beta": 2.0}) for c in ((), (f(4),), (f(3, 1),))),
    Case("Gemm", (3, 5), (f(4, 5), f(4)), {"transB": 1}),
    Case("Gemm", (5, 3), (f(4, 5), f(1)), {"transA": 1, "transB": 1}),
    Case("Einsum", ROWS, (f(5, 4),), {"equation": "bij,jk->bik"}),
    *(Case(op, constants=(i(2, 3),), attributes={"keepdims": keep}) for op in REDUCTIONS.split() for keep in (0, 1)),
    *(Case("ReduceSumSquare", constants=axes) for axes in ((), (i(-1),))),
    Case("ReduceMean", attributes={"noop_with_empty_axes": 1}),
    *(Case(op, attributes={"axis": 1, "keepdims": 0}) for op in ("ArgMax", "ArgMin")),
    *(Case("CumSum", constants=(np.array(1),), attributes=a) for a in ({}, {"exclusive": 1, "reverse": 1})),
    Case("TopK", constants=(i(2),), attributes={"axis": 1}),
    *(Case("Reshape", constants=(i(*shape),)) for shape in ((0, -1), (2, 2, 2, -1), (0, 0, 42))),
    *(Case("Flatten", attributes={"axis": axis}) for axis in (0, 1, 2, -1)),
    *(Case("Transpose", attributes=a) for a in ({}, {"perm": [0, 2, 3, 1]})),
    *(Case("Squeeze", (2, 1, 3, 1), axes) for axes in ((), (i(1),), (i(-1, 1),))),
    Case("Unsqueeze", ROWS, (i(0, -1),)),
    Case("Concat", constants=(f(2, 3, 7, 6),), attributes={"axis": 1}),
    Case("Concat", constants=(f(2, 4, 7, 2),), attributes={"axis": -1}),
    Case("Slice", constants=(i(1), i(3), i(1))),
    *(Case("Slice", constants=c) for c in ((i(-1, 0), i(-9, 5), i(3, 2), i(-2, 2)), (i(0, 1), i(2, 99)))),
    *(Case("Gather", constants=(at,), attributes={"axis": 1}) for at in (np.array(1), i(3, -1), np.array([[0, 1]]))),
    Case("GatherElements", ROWS, (np.array([[[0, 1, -1, 2, 0]], [[2, 2, 1, 0, 0]]]),), {"axis": 1}),
    Case("GatherND", ROWS, (np.array([[0, 1], [1, 2]]),)),
    Case("ScatterND", ROWS, (np.array([[0, 1], [1, 2]]), f(2, 5))),
    Case("ScatterElements", ROWS, (np.array([[[0, 1, 2, 2, 0]]]), f(1, 1, 5)), {"axis": 1}),
    *(Case("Expand", (2, 1, 3), (i(*shape),)) for shape in ((2, 4, 3), (5, 1, 1, 1))),
    Case("Tile", ROWS, (i(1, 2, 3),)),
    *(Case("Pad", constants=(i(0, 1, 2, 0, 0, 0, 1, 3), *v)) for v in ((), (scalar(1.5),))),
    *(Case("Pad", constants=(i(2, 1, 1, 0), None, i(2, 3)), attributes={"mode": m}) for m in PADDINGS),
    Case("Pad", constants=(i(0, 0, -1, 0, 0, 0, -2, 1),)),
    *(Case("Trilu", ROWS, (np.array(k),), {"upper": upper}) for k, upper in ((0, 1), (1, 0))),
    Case("EyeLike", (3, 4), attributes={"k": 1}),
    *(Case("Resize", constants=(None, scales, sizes), attributes=a) for a, scales, sizes in RESIZES),
    *(Case("DepthToSpace", attributes={"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Case("SpaceToDepth", (2, 4, 6, 8), attributes={"blocksize": 2}),
]  # fmt: skip


def compare(model: onnx.ModelProto, x: Array, tolerance: float = 1e-5) -> None:
    """The network of a model computes what ONNX Runtime computes, for a type too."""
    expected = run_onnx(model, x)
    with torch.no_grad():
        computed = Network(graph_of(model, "y")).eval()(torch.from_numpy(x)).numpy()
    assert computed.shape == expected.shape
    assert computed.dtype == expected.dtype
    np.testing.assert_allclose(computed, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_equals_onnx_runtime(case: Case) -> None:
    constants = {f"c{place}": array for place, array in enumerate(case.constants) if array is not None}
    names = [f"c{place}" if array is not None else "" for place, array in enumerate(case.constants)]
    inputs = [*names, "x"] if case.x_last else ["x", *names]
    outputs = ["y", "indices"] if case.op == "TopK" else ["y"]
    node = helper.make_node(case.op, inputs, outputs, **case.attributes)
    integer = case.op in ("ArgMax", "ArgMin", "Cast")
    logical = case.op in ("IsNaN", "IsInf", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    kind = onnx.TensorProto.INT64 if integer else onnx.TensorProto.BOOL if logical else onnx.TensorProto.FLOAT
    model = model_of([node], constants, case.shape, opset=case.opset, output_type=kind)
    random = np.random.default_rng(1)
    x = random.uniform(0.1, 0.9, case.shape) if case.positive else random.standard_normal(case.shape)
    compare(model, x.astype(np.float32))


def graph_case(text: str, constants: dict[str, Array], shape: tuple[int, ...] = ROWS, opset: int = 20) -> None:
    """Compare a graph written as lines of ONNX's text format without types."""
    nodes = onnx.parser.parse_graph(f"g (float x) => (float y) {{ {text} }}").node
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    compare(model_of(list(nodes), constants, shape, opset=opset), x)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logical_operator_equals_onnx_runtime(op: str) -> None:
    zero, half = {"zero": np.zeros(5, np.float32)}, {"half": np.full((3, 1), 0.5, np.float32)}
    text = f"a = Greater(x, zero) b = Less(x, half) c = {op}(a, b) d = Not(c) y = Cast<to = 1>(d)"
    graph_case(text, zero | half)


@pytest.mark.parametrize(
    "text",
    [
        "b = Greater(x, c) y = Where(b, x, c)",
        "i = ArgMax<axis = -1, keepdims = 0>(x) y = OneHot(i, depth, values)",
        "a, b, d = Split<axis = 1, num_outputs = 3>(x) y = Concat<axis = 2>(d, b, a)",
        "a, b = Split<axis = 2>(x, sizes) y = Concat<axis = 2>(b, a)",
        "a = Abs(x) b = Add(a, one) y = Acosh(b)",
        "a = Cast<to = 7>(x) b = CastLike(a, x) y = Add(b, x)",
        "s = Shape(x) n = Gather(s, zero) m = Mul(n, two) f = Cast<to = 1>(m) y = Div(x, f)",
        "s = Shape<start = 1>(x) z = ConstantOfShape(s) y = Add(x, z)",
        "n = Size(x) f = Cast<to = 1>(n) y = Div(x, f)",
        "s = Shape(x) n = Gather(s, two) r = Range(zero, n, step) f = Cast<to = 1>(r) y = Mul(x, f)",
        "s = Shape(x) e = Slice(s, at0, at2) t = Concat<axis = 0>(e, minus) y = Reshape(x, t)",
    ],
)
def test_graph_equals_onnx_runtime(text: str) -> None:
    constants = {
        "c": f(3, 1), "depth": np.array(5), "values": np.array([0, 2], np.float32), "sizes": i(2, 3), "one": scalar(1),
        "zero": np.array(0), "two": np.array(2), "step": np.array(1), "at0": i(0), "at2": i(2), "minus": i(-1),
    }  # fmt: skip
    words = re.findall(r"\w+", text)
    graph_case(text, {name: array for name, array in constants.items() if name in words})


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_equals_onnx_runtime(causal: int) -> None:
    text = f"y = Attention<q_num_heads = 2, kv_num_heads = 2, is_causal = {causal}>(x, k, v)"
    graph_case(text, {"k": f(2, 6, 8), "v": f(2, 6, 8)}, (2, 5, 8), opset=23)


def test_batch_norm_of_weights_uses_their_own_statistics() -> None:
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    text = "s, m, v = BatchNormalization<training_mode = 1>(w, one, zero, zero, one) y = MatMul(x, s)"
    weight = f(5, 4)
    nodes = onnx.parser.parse_graph(f"g (float x) => (float y) {{ {text} }}").node
    network = Network(graph_of(model_of(list(nodes), {"w": weight, "one": one, "zero": zero}, ROWS), "y"))
    x = torch.randn(2, 3, 5)
    standard = (weight - weight.mean(0)) / np.sqrt(weight.var(0) + 1e-5)
    torch.testing.assert_close(network.eval()(x), x @ torch.from_numpy(standard), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.train()(x), network.eval()(x))


def test_every_operator_is_compared() -> None:
    compared = {case.op for case in CASES}
    elsewhere = {"And", "Or", "Xor", "Not", "Where", "OneHot", "Split", "Acosh", "CastLike", "ConstantOfShape", "Range"}
    assert OPERATORS.keys() - compared - elsewhere == {"Attention", "WeightStandardization", "Swish"}
