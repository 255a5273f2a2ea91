"""A model whose parameters, gradients and statistics are views into flat vectors: one tensor to push or pull."""

import torch
from torch import Tensor, nn


class FlatModel:
    """Wraps `module` in place; loading, pushing and zeroing need no loop over its parameters.

    parameters, gradient: (n,) float32; the first `decayed` elements are the weights that weight decay applies to (two
    or more dimensions), then come biases and normalisation. statistics: (m,) float32, every floating-point buffer
    (batch norm's running mean and variance). The module's tensors alias these vectors from here on.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        parameters = sorted(module.parameters(), key=lambda p: p.dim() < 2)
        self.decayed = sum(p.numel() for p in parameters if p.dim() >= 2)
        self.parameters = torch.cat([p.detach().flatten() for p in parameters]).float()
        self.gradient = torch.zeros_like(self.parameters)
        sizes = [p.numel() for p in parameters]
        values, gradients = self.parameters.split(sizes), self.gradient.split(sizes)
        for parameter, value, gradient in zip(parameters, values, gradients, strict=True):
            parameter.data = value.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        device = self.parameters.device
        self.statistics = torch.cat([b.flatten() for b in buffers]) if buffers else torch.zeros(0, device=device)
        for buffer, value in zip(buffers, self.statistics.split([b.numel() for b in buffers]), strict=True):
            buffer.data = value.view_as(buffer)

    def load(self, parameters: Tensor, statistics: Tensor) -> None:
        """Copy in a snapshot's parameters (n,) and statistics (m,)."""
        self.parameters.copy_(parameters)
        self.statistics.copy_(statistics)
