import numpy as np
import pytest
import torch
from torch import Tensor

from psys.data.sample import read_sample


@pytest.fixture(scope="session")
def images() -> Tensor:
    """250 real images of all classes, (250, 32, 32, 3) uint8."""
    return torch.from_numpy(np.array(read_sample().train.images[::8]))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)
