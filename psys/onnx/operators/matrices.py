"""Products of matrices, and attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from psys.onnx.operators.table import Unsupported, operator


@operator("MatMul", weights=(0, 1))
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of matrices, with leading axes broadcast."""
    return a @ b


@operator("Gemm", weights=(1, 2))
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """alpha * a @ b + beta * c; the usual layer of a network is torch's linear."""
    a = a.T if transA else a
    if alpha == 1 and (c is None or (beta == 1 and c.dim() == 1)):
        return F.linear(a, b if transB else b.T, c)
    out = alpha * (a @ (b.T if transB else b))
    return out if c is None else out + beta * c


@operator("Einsum")
def einsum(*values: Tensor, equation: str) -> Tensor:
    """Einstein's summation."""
    return torch.einsum(equation, *values)


@operator("Attention")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 1,
) -> Tensor:
    """Scaled dot-product attention over heads; (batch, length, width) inputs are divided into heads."""
    if past_key is not None or past_value is not None or softcap:
        raise Unsupported("attention with a cache or a softcap is not supported")
    flat = q.dim() == 3
    if flat:
        q, k, v = (
            x.unflatten(2, (heads, -1)).transpose(1, 2)
            for x, heads in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads))
        )
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)) @ k.transpose(-1, -2)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    out = scores.softmax(dim=-1) @ v
    return out.transpose(1, 2).flatten(2) if flat else out
