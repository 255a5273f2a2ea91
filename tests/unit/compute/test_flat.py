from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep
from psys.models.registry import build
from psys.models.resnet import resnet
from tests.support.factories import Unusual

Batch = tuple[torch.Tensor, torch.Tensor]


def test_a_flat_model_computes_what_the_module_did(views: Batch) -> None:
    torch.manual_seed(0)
    module = resnet(8).eval()
    before = module(views[0])
    names = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = FlatModel(module)
    torch.testing.assert_close(module(views[0]), before)
    assert all(torch.equal(tensor, names[name]) for name, tensor in module.state_dict().items())
    assert len(model.parameters) == len(model.gradient) == sum(p.numel() for p in module.parameters())
    assert model.decayed == sum(p.numel() for p in module.parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", ["resnet8", "mlp64"])
def test_the_gradient_is_that_of_the_plain_module_in_nchw(name: str, views: Batch) -> None:
    torch.manual_seed(0)
    plain, model = build(name, 10), FlatModel(build(name, 10))
    model.module.load_state_dict(plain.state_dict())
    F.cross_entropy(plain.train()(views[0].contiguous()), views[1]).backward()
    GradientStep(model, torch.float32)(*views)
    found = dict(zip(model.parameter_list, model.parameter_gradients, strict=True))
    for expected, parameter in zip(plain.parameters(), model.module.parameters(), strict=True):
        assert expected.grad is not None
        # Kernels round differently, and a ReLU at its corner then lets one image's gradient through or not.
        assert (found[parameter] - expected.grad).norm() < 0.01 * expected.grad.norm()
    statistics = torch.cat([b.flatten() for b in plain.buffers() if b.is_floating_point()] or [torch.zeros(0)])
    torch.testing.assert_close(model.statistics, statistics, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet8", "mlp64"])
def test_it_lives_in_the_memory_it_is_given(name: str, precision: torch.dtype, views: Batch) -> None:
    torch.manual_seed(0)
    module = build(name, 10)
    plain = FlatModel(build(name, 10))
    plain.module.load_state_dict(module.state_dict())
    memory = torch.full((len(plain.parameters),), float("nan"))
    model = FlatModel(module, memory)
    assert torch.equal(memory, plain.parameters)
    starts = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in module.parameters())
    assert starts[0][0] == memory.data_ptr()
    assert all(start + size == following for (start, size), (following, _) in pairwise(starts))
    assert sum(size for _, size in starts) == memory.nbytes
    for _ in range(2):  # the gradient has taken the parameters' place: they come anew for each step
        model.load(plain.parameters, plain.statistics)
        expected = GradientStep(plain, precision)(*views)
        assert GradientStep(model, precision)(*views) == expected
        assert torch.equal(memory, plain.gradient)


def test_convolutions_lie_channels_last() -> None:
    model = FlatModel(resnet(8))
    weight = model.module.get_parameter("blocks.1.conv1.weight")
    gradient = dict(zip(model.parameter_list, model.parameter_gradients, strict=True))[weight]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.stride() == gradient.stride()
    with torch.no_grad():
        weight[3, 5, 0, 2] = 7.0
    start = weight.storage_offset()
    assert model.parameters[start : start + weight.numel()].view(32, 3, 3, 16)[3, 0, 2, 5] == 7.0


def test_load_moves_every_parameter_and_statistic(views: Batch) -> None:
    first, second = FlatModel(resnet(8).eval()), FlatModel(resnet(8).eval())
    GradientStep(second, torch.float32)(*views)
    first.load(second.parameters, second.statistics)
    first.module.eval(), second.module.eval()
    assert torch.equal(first.module(views[0]), second.module(views[0]))


def test_unusual_parameters_train_or_travel_as_statistics(views: Batch) -> None:
    torch.manual_seed(0)
    plain, model = Unusual(10), FlatModel(Unusual(10))
    model.module.load_state_dict(plain.state_dict())
    assert len(model.parameters) == 9 + 3 + 3 + 2 + 10 * 3 + 10  # the shared weight once
    assert torch.equal(model.statistics, plain.frozen)
    F.cross_entropy(plain(views[0]), views[1]).backward()
    GradientStep(model, torch.float32)(*views)
    found = dict(zip(model.parameter_list, model.parameter_gradients, strict=True))
    for (name, expected), parameter in zip(plain.named_parameters(), model.module.parameters(), strict=True):
        if name == "unused":
            assert found[parameter].count_nonzero() == 0
        elif expected.grad is not None:
            torch.testing.assert_close(found[parameter], expected.grad)
