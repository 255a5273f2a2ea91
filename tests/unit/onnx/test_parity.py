import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from psys.errors import PsysError
from psys.models.registry import build
from psys.onnx.parity import TOLERANCE, check


def test_export_equals_its_network(exported: Path, model: nn.Module, images: Tensor, settings: dict[str, Any]) -> None:
    parity = check(exported, model, images, settings["mean"], settings["std"])
    assert parity.images == 334
    assert 0 < parity.max_difference < TOLERANCE / 5
    assert parity.agreement == 1
    assert model.training


def test_another_network_is_rejected(exported: Path, images: Tensor, settings: dict[str, Any]) -> None:
    torch.manual_seed(5)
    with pytest.raises(PsysError, match=r"model\.onnx differs from the network.* on 334 images \(tolerance 0\.0001\)"):
        check(exported, build("resnet8", 10), images, settings["mean"], settings["std"])


def test_another_normalisation_is_rejected(
    exported: Path, model: nn.Module, images: Tensor, settings: dict[str, Any]
) -> None:
    with pytest.raises(PsysError, match="differs from the network"):
        check(exported, model, images, (0.5, 0.5, 0.5), settings["std"])


def test_network_with_nan_is_rejected(exported: Path, images: Tensor, settings: dict[str, Any]) -> None:
    broken = build("resnet8", 10)
    nn.init.constant_(broken.get_parameter("fc.bias"), float("nan"))
    with pytest.raises(PsysError, match="differ by up to nan"):
        check(exported, broken, images, settings["mean"], settings["std"])


@pytest.mark.parametrize("content", [None, b"", b"not a network"])
def test_invalid_onnx_file_is_rejected(
    tmp_path: Path, model: nn.Module, images: Tensor, content: bytes | None, settings: dict[str, Any]
) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PsysError, match=r"ONNX Runtime cannot load .*broken\.onnx") as caught:
        check(path, model, images, settings["mean"], settings["std"])
    assert "\n" not in str(caught.value)


def test_onnx_runtime_sends_no_usage_data_and_keeps_no_identifier(exported: Path, tmp_path: Path) -> None:
    program = f"from psys.onnx import parity; parity.onnxruntime.InferenceSession({str(exported)!r})"
    variables = {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}  # without CI, where it sends none
    subprocess.run([sys.executable, "-c", program], env=variables, check=True, timeout=120)
    assert not list(tmp_path.rglob("*onnxruntime*"))
