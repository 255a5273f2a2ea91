"""Small ONNX models made node by node, and what ONNX Runtime computes with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    x_shape: Sequence[int | str],
    *,
    opset: int = 20,
    x_type: int = onnx.TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
    output_type: int = onnx.TensorProto.FLOAT,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model from the input `x` to `outputs`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", x_type, list(x_shape))],
        [helper.make_tensor_value_info(name, output_type, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run_onnx(model: onnx.ModelProto | Path, x: Array) -> Array:
    """The first output that ONNX Runtime computes."""
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
