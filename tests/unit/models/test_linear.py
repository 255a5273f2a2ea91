"""The linear layer equals nn.Linear on every processor, in every precision."""

import copy

import pytest
import torch
from torch import Tensor, nn

from psys.models.linear import Linear

CAPABILITIES = torch.cpu.get_capabilities()


@pytest.fixture(params=["AMD EPYC", "Intel Xeon"], autouse=True)
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test as on a processor of each vendor."""
    name: str = request.param
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "cpu_name": name})
    return name


def layers_and_input(dtype: torch.dtype = torch.float32) -> tuple[Linear, nn.Linear, Tensor]:
    torch.manual_seed(0)
    layer, plain = Linear(96, 40).to(dtype), nn.Linear(96, 40).to(dtype)
    plain.load_state_dict(layer.state_dict())
    return layer, plain, torch.randn(8, 96, dtype=dtype)


@pytest.mark.parametrize("rows", [8, 1, 0])
def test_output_and_gradients_equal_nn_linear(rows: int) -> None:
    outputs, gradients = [], []
    for layer in layers_and_input()[:2]:
        x = layers_and_input()[2][:rows].requires_grad_()
        y = layer(x)
        outputs.append(y.detach())
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_library_for_float32_depends_on_the_processor(processor: str) -> None:
    layer, _, x = layers_and_input()
    with torch.profiler.profile() as profile:
        layer(x).sum().backward()
    onednn = {"aten::mkldnn_linear", "aten::mkldnn_linear_backward"}
    mkl = {"aten::addmm", "aten::mm"}
    called = {event.key for event in profile.key_averages()} & (onednn | mkl)
    assert called == (mkl if processor.startswith("Intel") else onednn)


@pytest.mark.skipif(CAPABILITIES["architecture"] != "x86_64", reason="only x86 has MKL")
def test_torch_reports_the_processor_name() -> None:
    assert isinstance(CAPABILITIES["cpu_name"], str)


def test_other_precisions_and_inference_equal_nn_linear() -> None:
    layer, plain, x = layers_and_input()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(x))
    layer, plain, x = layers_and_input(torch.float64)
    assert torch.equal(layer(x), plain(x))


def test_export_contains_no_mkldnn() -> None:
    layer, _, x = layers_and_input()
    program = torch.export.export(copy.deepcopy(layer), (x,))
    assert "mkldnn" not in str(program.graph)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share_memory", [False, True])
def test_backward_writes_weight_gradient(share_memory: bool, precision: torch.dtype, processor: str) -> None:
    found: list[Tensor] = []
    expected: list[Tensor] = []
    first, plain, _ = layers_and_input()
    second = Linear(40, 10)
    for layer in (first, second):
        layer.weight_gradient = layer.weight.detach() if share_memory else torch.empty_like(layer.weight)
    plain_second = nn.Linear(40, 10)
    plain_second.load_state_dict(second.state_dict())
    for layers, gradients in (((first, second), found), ((plain, plain_second), expected)):
        x = layers_and_input()[2].requires_grad_()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            y = layers[1](layers[0](x))
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        gradients.extend(torch.autograd.grad(y.float().square().sum(), [x, *parameters]))
    assert {tensor.dtype for tensor in found} == {torch.float32}
    torch.testing.assert_close(found, expected)
    if processor.startswith("Intel") or precision != torch.float32:
        assert found[1] is first.weight_gradient
        assert found[3] is second.weight_gradient
