"""ResNets for small images: 6n + 2 layers in stages of 16, 32 and 64 channels. He et al., CVPR 2016, section 4.2."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of the paper).

    Where the channels double, the resolution halves: the shortcut takes every second pixel and fills new channels with
    zeros.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride = 1 if in_channels == out_channels else 2
        self.new_channels = out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out + x)


class ResNet(nn.Module):
    """(B, 3, H, W) normalised float images -> (B, num_classes) logits, any H and W; blocks: n, the blocks per stage."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        self.blocks = nn.Sequential(*(Block(i, o) for i, o in pairwise(widths)))
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.blocks(x).mean(dim=(2, 3))
        logits: Tensor = self.fc(x)
        return logits


def resnet(depth: int, num_classes: int = 10) -> ResNet:
    """ResNet-`depth` with He initialisation; ResNet-44 has 658,586 parameters with 10 classes.

    Raises ValueError if the depth is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"ResNet depth must be 6n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
    return ResNet(blocks, num_classes)
