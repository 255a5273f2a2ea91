import pytest
import torch

from psys.errors import PsysError
from psys.models.registry import build


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"])
def test_builds_by_name(name: str) -> None:
    assert build(name, 5).eval()(torch.rand(1, 3, 8, 8)).shape == (1, 5)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(PsysError, match=r"unknown model 'resnet18' \(known: resnet8, .*resnet110\)"):
        build("resnet18", 10)
