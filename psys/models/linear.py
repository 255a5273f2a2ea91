"""A linear layer for large weights: it picks the faster CPU library and can write its weight gradient in place."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """nn.Linear, (B, in_features) -> (B, out_features); call the layer once in each forward pass.

    weight_gradient: (out_features, in_features) float32, or None. The backward pass writes the weight's gradient into
    this tensor, which may share the weight's memory. Without the tensor autograd allocates the gradient, and copying it
    elsewhere takes as long as one matrix product. Compute gradients with `torch.autograd.grad`: `backward()` would add
    weight_gradient to weight.grad, which may be the same memory.

    In float32 on AMD processors oneDNN computes the product and weight_gradient is ignored: MKL, torch's default, does
    not use AVX-512 there and takes twice as long. On Intel processors oneDNN's backward pass takes twice as long as
    MKL's. On a GPU and in an ONNX export the layer is nn.Linear.
    """

    weight_gradient: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return super().forward(x)
        if x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and _mkl_ignores_avx512():
            return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()
        if self.weight_gradient is None or self.bias is None or x.dim() != 2:
            return super().forward(x)
        inputs = x, self.weight, self.bias, self.weight_gradient
        output: Tensor = _Product.apply(*inputs)  # type: ignore[no-untyped-call]
        return output


class _Product(torch.autograd.Function):
    """F.linear in autocast's precision, where autocast is on, with a backward pass that fills `weight_gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, weight_gradient: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.weight_gradient = weight_gradient
        return F.linear(x, weight, bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        # The input's gradient comes first: weight_gradient may overwrite the weight.
        input_gradient = gradient @ weight if ctx.needs_input_grad[0] else None
        if gradient.dtype == ctx.weight_gradient.dtype:
            torch.mm(gradient.t(), x, out=ctx.weight_gradient)
        else:
            ctx.weight_gradient.copy_(gradient.t() @ x)
        return input_gradient, ctx.weight_gradient, gradient.sum(0), None


def _mkl_ignores_avx512() -> bool:
    processor = torch.cpu.get_capabilities()
    amd = processor.get("cpu_name", "").startswith("AMD")
    return amd and bool(processor.get("avx512_f")) and torch.backends.mkldnn.is_available()
