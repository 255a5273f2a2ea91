import pytest
import torch

from psys.errors import PsysError
from psys.models.registry import build


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


@pytest.mark.parametrize("name", ["resnet18", "mlp", "mlp0", "mlp-3", "mlp1e3", "MLP7", "mlp10000"])
def test_unknown_model_name_is_rejected(name: str) -> None:
    with pytest.raises(PsysError, match=rf"unknown model '{name}' \(known: resnet8, .*resnet110, mlp<"):
        build(name, 10)
