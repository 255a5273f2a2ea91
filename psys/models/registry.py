"""The networks that a run can select by name."""

import re

from torch import nn

from psys.errors import PsysError
from psys.models.mlp import MLP
from psys.models.resnet import resnet

_DEPTHS = {f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56, 110)}


def build(name: str, num_classes: int) -> nn.Module:
    """A newly initialised network, (B, 3, H, W) -> logits (B, num_classes). Raises PsysError for an unknown name."""
    if name in _DEPTHS:
        return resnet(_DEPTHS[name], num_classes)
    if match := re.fullmatch(r"mlp([1-9]\d{0,3})", name):
        return MLP(int(match[1]), num_classes)
    raise PsysError(f"unknown model '{name}' (known: {', '.join(_DEPTHS)}, mlp<hidden units, 1 to 9999>)")
