"""A linear layer that is as fast on one maker's processors as on another's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """(B, in_features) -> (B, out_features), as nn.Linear; oneDNN multiplies in float32 where MKL would be slow.

    torch has MKL do it, which leaves AVX-512 alone on processors that are not Intel's: half of oneDNN's speed. On
    Intel's it is oneDNN's backward that takes twice as long. To be exported as ONNX it is the plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if plain or x.device.type != "cpu" or x.dtype != torch.float32 or not _mkl_leaves_avx512_alone():
            return super().forward(x)
        return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()


def _mkl_leaves_avx512_alone() -> bool:
    processor = torch.cpu.get_capabilities()
    intel = processor.get("cpu_name", "").startswith("Intel")
    return bool(processor.get("avx512_f")) and not intel and torch.backends.mkldnn.is_available()
