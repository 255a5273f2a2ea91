"""A linear layer that is as fast on one maker's processors as on another's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """(B, in_features) -> (B, out_features), as nn.Linear; in float32 on a CPU it is oneDNN that multiplies.

    torch has MKL do it, which leaves AVX-512 alone on processors that are not Intel's: half the speed. oneDNN is what
    convolutions and bfloat16 use already. To be exported as ONNX it is the plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if plain or x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()
