"""A linear layer for big ones: fast on every maker's processors, its weight's gradient where it is wanted."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """(B, in_features) -> (B, out_features), as nn.Linear; to be used once in a forward.

    `slope`: (out_features, in_features) float32, where backward puts the weight's gradient; it may be the weight's own
    memory. Without it autograd leaves that gradient anywhere, and to copy it from there takes as long as one of the
    products. Gradients are to be had by `torch.autograd.grad`: backward() would add to a weight.grad that is the slope.

    In float32 on AMD's processors oneDNN multiplies, and the slope is not used: MKL, which torch would take, leaves
    AVX-512 alone there and is half as fast. (On Intel's it is oneDNN whose backward takes twice as long.) On a GPU, and
    to be exported as ONNX, this is the plain layer.
    """

    slope: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return super().forward(x)
        if x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and _mkl_leaves_avx512_alone():
            return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()
        if self.slope is None or self.bias is None or x.dim() != 2:
            return super().forward(x)
        output: Tensor = _Product.apply(x, self.weight, self.bias, self.slope)  # type: ignore[no-untyped-call]
        return output


class _Product(torch.autograd.Function):
    """F.linear, in the precision of autocast if that is on, with a backward that fills `slope`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.slope = slope
        return F.linear(x, weight, bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        of_x = gradient @ weight if ctx.needs_input_grad[0] else None  # first: the slope may be the weight's memory
        if gradient.dtype == ctx.slope.dtype:
            torch.mm(gradient.t(), x, out=ctx.slope)
        else:
            ctx.slope.copy_(gradient.t() @ x)
        return of_x, ctx.slope, gradient.sum(0), None


def _mkl_leaves_avx512_alone() -> bool:
    processor = torch.cpu.get_capabilities()
    amd = processor.get("cpu_name", "").startswith("AMD")
    return amd and bool(processor.get("avx512_f")) and torch.backends.mkldnn.is_available()
