"""Wide ResNets for small images. Zagoruyko and Komodakis, BMVC 2016."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; a 1x1 convolution is the shortcut to other channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """(B, 3, H, W) normalised float images -> (B, num_classes) logits, any H and W.

    WRN-16-4 has 2,748,890 parameters with 10 classes (2.8 million in the paper's table 4).
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        assert depth % 6 == 4
        blocks, layers, channels = (depth - 4) // 6, [], 16
        for stage, out_channels in enumerate((16 * width, 32 * width, 64 * width)):
            for number in range(blocks):
                layers.append(Block(channels, out_channels, 2 if stage and not number else 1))
                channels = out_channels
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
