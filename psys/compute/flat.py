"""A model whose parameters, gradients and statistics are views into flat vectors: one tensor to push or pull."""

import torch
from torch import Tensor, nn


class FlatModel:
    """Wraps `module` in place; loading and pushing need no loop over its parameters.

    parameters, gradient: (n,) float32; the first `decayed` elements are the weights that weight decay applies to (two
    or more dimensions), then come biases and normalisation. Convolution weights lie in channels_last order (out, rows,
    columns, in), as the kernels for channels_last images want them. statistics: (m,) float32, every floating-point
    buffer (batch norm's running mean and variance), and the parameters that need no gradient. The module's tensors are
    views of these vectors.
    parameter_list: the module's parameters in the vectors' order; parameter_gradients: their views of `gradient`.

    `memory`: (n,) to live in, shared with another process say, on the module's device: there parameters and gradient
    take turns, the one written over the other. The module's values are copied to it.
    """

    def __init__(self, module: nn.Module, memory: Tensor | None = None) -> None:
        self.module = module
        trained = [p for p in module.parameters() if p.requires_grad]
        self.parameter_list = sorted(trained, key=lambda p: p.dim() < 2)
        sizes = [p.numel() for p in self.parameter_list]
        device = self.parameter_list[0].device
        self.decayed = sum(p.numel() for p in self.parameter_list if p.dim() >= 2)
        self.parameters = torch.empty(sum(sizes), device=device) if memory is None else memory
        self.gradient = torch.zeros_like(self.parameters) if memory is None else memory
        shapes = [p.shape for p in self.parameter_list]
        self.parameter_gradients = [_shaped(*pair) for pair in zip(self.gradient.split(sizes), shapes, strict=True)]
        for parameter, value in zip(self.parameter_list, self.parameters.split(sizes), strict=True):
            parameter.data = _shaped(value, parameter.shape).copy_(parameter.detach())
        frozen = [p for p in module.parameters() if not p.requires_grad]
        buffers = [*(b for b in module.buffers() if b.is_floating_point()), *frozen]
        self.statistics = torch.cat([b.flatten() for b in buffers]) if buffers else torch.zeros(0, device=device)
        for buffer, value in zip(buffers, self.statistics.split([b.numel() for b in buffers]), strict=True):
            buffer.data = value.view_as(buffer)

    def load(self, parameters: Tensor, statistics: Tensor) -> None:
        """Copy in a snapshot's parameters (n,) and statistics (m,)."""
        self.parameters.copy_(parameters)
        self.statistics.copy_(statistics)


def _shaped(flat: Tensor, shape: torch.Size) -> Tensor:
    """A slice of a flat vector as a tensor of that shape; a convolution's weight (O, I, H, W) strides channels_last."""
    if len(shape) != 4:
        return flat.view(shape)
    out_channels, in_channels, rows, columns = shape
    return flat.view(out_channels, rows, columns, in_channels).permute(0, 3, 1, 2)
