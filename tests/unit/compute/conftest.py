import pytest
import torch

from psys.augment.batch import normalise
from psys.data.store import PreparedStore


@pytest.fixture
def views(small_store: PreparedStore) -> tuple[torch.Tensor, torch.Tensor]:
    """16 training images as the network takes them, channels_last, and their labels."""
    train = small_store.split("train")
    images = torch.tensor(train.images[::10])
    return normalise(images, small_store.channel_mean, small_store.channel_std), torch.tensor(train.labels[::10])
