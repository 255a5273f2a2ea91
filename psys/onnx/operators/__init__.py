"""The operators of ONNX in torch: one small function an operator, in the table OPERATORS."""

from psys.onnx.operators import (  # noqa: F401  each module enters its functions into the table
    arithmetic,
    convolution,
    indexing,
    matrices,
    normalisation,
    pooling,
    reductions,
    shapes,
)
from psys.onnx.operators.host import HOST_OPERATORS
from psys.onnx.operators.table import OPERATORS, Operator, Unsupported

__all__ = ["HOST_OPERATORS", "OPERATORS", "Operator", "Unsupported"]
