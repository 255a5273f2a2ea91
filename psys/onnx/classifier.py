"""An imported network behind psys's own images: colours, range, size and layout as the file declares them."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from psys.augment.batch import Colour
from psys.onnx.graph import Graph
from psys.onnx.network import Network

_GREY = (0.299, 0.587, 0.114)  # of R, G and B in luma, ITU-R BT.601
_RANGES = {
    "nominalrange_0_255": (0.0, 255.0),
    "normalized_0_1": (0.0, 1.0),
    "normalized_1_1": (-1.0, 1.0),
    "nominalrange_16_235": (16.0, 235.0),
}
"""Values of Image.NominalPixelRange, in the words of ONNX's MetadataProps.md: black and white"""


@dataclass(frozen=True)
class Pixels:
    """What the file declares of its input."""

    size: tuple[int, int]
    channels: int
    last: bool
    """channels are the last axis"""
    flat: bool
    """an image is one row of numbers"""
    range: tuple[float, float] | None
    """black and white; None: images whose channels have mean 0 and deviation 1"""
    bgr: bool


class ImportedClassifier(nn.Module):
    """(B, 3, H, W) images normalised by `mean` and `std` -> (B, classes) scores of an imported network."""

    def __init__(self, network: Network, pixels: Pixels, mean: Colour, std: Colour) -> None:
        super().__init__()
        self.network = network
        self.pixels, self.mean, self.std = pixels, mean, std

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.pixels
        if pixels.range is not None:
            black, white = pixels.range
            mean, std = (x.new_tensor(colour).view(1, 3, 1, 1) for colour in (self.mean, self.std))
            x = (x * std + mean) * (white - black) + black
        if pixels.bgr:
            x = x.flip(1)
        if pixels.channels == 1:
            x = (x * x.new_tensor(_GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        if tuple(x.shape[2:]) != pixels.size:
            x = F.interpolate(x, pixels.size, mode="bilinear", align_corners=False)
        if pixels.last:
            x = x.permute(0, 2, 3, 1)
        logits: Tensor = self.network(x.flatten(1) if pixels.flat else x)
        return logits.flatten(1)


def declared_range(graph: Graph) -> tuple[float, float] | None:
    """The values of black and white, by the metadata of the file, its type, or the first nodes that scale pixels."""
    metadata = {key.lower(): value.lower() for key, value in graph.metadata.items()}
    if (named := metadata.get("image.nominalpixelrange")) in _RANGES:
        return _RANGES[named]
    if graph.input_type == 2:  # uint8
        return 0.0, 255.0
    value = graph.input
    while len(users := graph.users(value)) == 1:
        (node,) = users
        numbers = [graph.constants[name] for name in node.inputs if name in graph.constants]
        if node.op in ("Sub", "Add", "Mul", "Div") and numbers and numbers[0].size <= 4:
            largest = float(abs(numbers[0]).max())
            factor = 1 / largest if node.op == "Mul" and largest else largest
            if factor > 2:  # of 255, or a mean of pixel values in 0..255
                return 0.0, 255.0
            if node.op == "Sub" and largest > 0:
                return 0.0, 1.0
        elif node.op not in ("Cast", "Transpose", "Identity"):
            break
        value = node.outputs[0]
    return None
