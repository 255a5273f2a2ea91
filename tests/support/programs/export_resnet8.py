"""Exports an untrained ResNet-8 to the path of its argument."""

import sys
from pathlib import Path

from psys.models.registry import build
from psys.onnx.export import export

export(
    build("resnet8", 10),
    Path(sys.argv[1]),
    image_size=(32, 32),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    classes=[str(number) for number in range(10)],
    metadata={},
)
