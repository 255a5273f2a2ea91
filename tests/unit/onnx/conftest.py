from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psys.augment.batch import normalise
from psys.data.sample import read_sample
from psys.models.registry import build
from psys.onnx.export import export
from tests.support.images import pixels_of


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """The keyword arguments of `export`."""
    return {
        "image_size": (32, 32),
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.247, 0.2435, 0.2616),
        "classes": [f"class {number}" for number in range(10)],
        "metadata": {"model": "resnet8", "run": "a test"},
    }


@pytest.fixture(scope="session")
def images() -> Tensor:
    """334 real images of all classes, (334, 32, 32, 3) uint8: more than one batch of `check`."""
    return torch.from_numpy(pixels_of(read_sample().train)[::6].copy())


@pytest.fixture(scope="session")
def model(images: Tensor, settings: dict[str, Any]) -> nn.Module:
    """A ResNet-8 in training mode after a few training steps, which change its batch-norm statistics."""
    torch.manual_seed(0)
    model = build("resnet8", 10)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = torch.from_numpy(np.array(read_sample().train.labels[::6]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(10):
        batch = slice(step, None, 10)  # the sample is sorted by class
        optimizer.zero_grad()
        F.cross_entropy(model(normalise(images[batch], settings["mean"], settings["std"])), labels[batch]).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="session")
def exported(model: nn.Module, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export(model, path, **settings)
    return path
