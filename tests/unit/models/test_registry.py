import pytest
import torch

from psys.errors import PsysError
from psys.models.registry import build, name_of
from tests.support.factories import Small, Unusual


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"])
def test_build_resnet_by_name(name: str) -> None:
    assert build(name, 5).eval()(torch.rand(1, 3, 8, 8)).shape == (1, 5)


def test_build_mlp_of_any_width() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build("mlp3748", 10).parameters()) == 25_606_346
    assert build("mlp7", 5)(torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)).shape == (2, 5)


def test_mlp_rejects_other_image_sizes() -> None:
    with pytest.raises(PsysError, match=r"an mlp takes images of shape \(3, 32, 32\), got \(3, 28, 28\): choose"):
        build("mlp7", 5)(torch.rand(2, 3, 28, 28))


@pytest.mark.parametrize("name", ["resnet19", "wrn-16", "mlp", "mlp0", "mlp-3", "mlp1e3", "MLP7", "mlp10000"])
def test_unknown_model_name_is_rejected(name: str) -> None:
    with pytest.raises(
        PsysError, match=rf"unknown model '{name}' \(known: resnet8, .*resnet110, resnet18, wrn-16-4, mlp"
    ):
        build(name, 10)


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_173_962), ("wrn-16-4", 2_748_890)])
def test_larger_networks_have_the_published_size(name: str, parameters: int) -> None:
    model = build(name, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.eval()(torch.rand(1, 3, 16, 16)).shape == (1, 10)


def test_factory_gets_classes_and_image_size() -> None:
    assert build("tests.support.factories:Small", 7)(torch.rand(2, 3, 9, 9)).shape == (2, 7)
    assert build("tests.support.factories:flat", 7, (5, 6))(torch.rand(2, 3, 5, 6)).shape == (2, 7)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("nowhere.models:net", "there is no module 'nowhere'; it must be importable on every host"),
        ("tests.support.factories:missing", "the module tests.support.factories has no function 'missing'"),
        ("tests.support.factories:number", "the module tests.support.factories has no function 'number'"),
        ("tests.support.factories:without_classes", "takes no argument num_classes"),
        ("tests.support.factories:failing", "fails when it is called with num_classes=7: ValueError: no such width"),
        ("tests.support.factories:no_module", "returns a int: a torch.nn.Module was expected"),
        ("tests.support.factories:lazy", "has lazy layers"),
        ("tests.support.factories:frozen", "has no parameter that needs a gradient"),
    ],
)
def test_factory_that_makes_no_model_is_rejected(factory: str, reason: str) -> None:
    with pytest.raises(PsysError, match=reason) as caught:
        build(factory, 7)
    assert "\n" not in str(caught.value)


def test_name_of_a_factory_is_its_import_path() -> None:
    assert name_of(Small) == "tests.support.factories:Small"
    assert isinstance(build(name_of(Unusual), 3), Unusual)
    with pytest.raises(PsysError, match="cannot be imported by workers"):
        name_of(lambda num_classes: Small(num_classes))
