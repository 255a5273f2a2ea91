"""Factories of models, of every kind that a user may name as package.module:factory."""

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """One convolution and a linear layer for images of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.conv(x).relu().mean(dim=(2, 3)))
        return scores


def flat(num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """A linear layer for images of one size."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size[0] * image_size[1], num_classes))


class Unusual(nn.Module):
    """A weight used twice, a parameter that needs no gradient, one that is never used, and a buffer of integers."""

    order: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.fc = nn.Linear(3, num_classes)
        self.register_buffer("order", torch.tensor([2, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.mean(dim=(2, 3))[:, self.order] * self.frozen
        scores: Tensor = self.fc(self.second(self.first(channels).relu()))
        return scores


def without_classes(width: int) -> nn.Module:
    return nn.Linear(3, width)


def failing(num_classes: int) -> nn.Module:
    raise ValueError("no such width")


def no_module(num_classes: int) -> int:
    return num_classes


def lazy(num_classes: int) -> nn.Module:
    return nn.LazyLinear(num_classes)


def frozen(num_classes: int) -> nn.Module:
    return Small(num_classes).requires_grad_(False)


def pair(num_classes: int) -> nn.Module:
    class Pair(Small):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            return scores, scores  # type: ignore[return-value]

    return Pair(num_classes)


number = 5
