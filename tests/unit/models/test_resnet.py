import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from psys.augment.batch import normalise
from psys.data.sample import read_sample
from psys.models.resnet import Block, resnet
from tests.support.images import pixels_of


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet44_parameter_count() -> None:
    assert parameters(resnet(44)) == 658_586


@pytest.mark.parametrize("depth", [8, 20, 110])
def test_depth_is_the_number_of_layers_with_weights(depth: int) -> None:
    layers = [module for module in resnet(depth).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 18, 54])
def test_invalid_depths_are_rejected(depth: int) -> None:
    with pytest.raises(ValueError, match=f"6n \\+ 2.*got {depth}"):
        resnet(depth)


def test_he_initialisation() -> None:
    for module in resnet(44).modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * 9
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.15)


def test_shortcut_is_option_a() -> None:
    block = Block(16, 32).eval()
    nn.init.zeros_(block.bn2.weight)  # the convolutions contribute nothing
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert int(out[:, :8].count_nonzero() + out[:, 24:].count_nonzero()) == 0


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (33, 47)])
def test_any_image_size_and_memory_format(size: tuple[int, int]) -> None:
    model = resnet(8, num_classes=7).eval()
    x = torch.rand(3, 3, *size)
    logits = model(x)
    assert logits.shape == (3, 7)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), logits, atol=1e-4, rtol=1e-4)


def test_resnet_learns_real_images() -> None:
    torch.manual_seed(0)
    sample = read_sample()
    images = normalise(torch.from_numpy(pixels_of(sample.train)[::40].copy()), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    labels = torch.from_numpy(np.array(sample.train.labels[::40]))
    assert len(labels.unique()) == 10
    model = resnet(8)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.2  # ln 10 = 2.3 for a random guess
