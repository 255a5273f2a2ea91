import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import psys
from psys.augment.batch import normalise
from psys.errors import PsysError
from psys.models.registry import build
from psys.onnx.export import export
from tests.support.processes import ROOT, run

PROGRAMS = ROOT / "tests" / "support" / "programs"


def test_export_is_one_file_with_metadata(exported: Path, settings: dict[str, Any]) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(exported)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == settings["classes"]
    assert metadata.items() >= settings["metadata"].items()
    (pixels,) = session.get_inputs()
    (probabilities,) = session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")


@pytest.mark.parametrize("batch", [1, 2, 33])
def test_any_batch_size_gives_probabilities(
    exported: Path, model: nn.Module, images: Tensor, batch: int, settings: dict[str, Any]
) -> None:
    session = onnxruntime.InferenceSession(exported)
    (probabilities,) = session.run(None, {"images": images[:batch].numpy()})
    assert probabilities.shape == (batch, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert probabilities.max() < 1  # not saturated, so the comparison is meaningful
    model.eval()
    with torch.no_grad():
        expected = model(normalise(images[:batch], settings["mean"], settings["std"])).softmax(dim=1)
    model.train()
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-5)


def test_export_contains_no_local_paths(exported: Path) -> None:
    content = exported.read_bytes()
    assert str(Path(psys.__file__).parent).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_export_keeps_the_model_and_replaces_an_existing_file(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = build("resnet8", 10).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an existing file")
    export(model, path, **settings)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert path.stat().st_size > 300_000


def test_export_prints_nothing(tmp_path: Path) -> None:
    done = run(str(PROGRAMS / "export_resnet8.py"), str(tmp_path / "model.onnx"), cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_wrong_number_of_classes_is_rejected(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(PsysError, match="the model has 7 outputs, but there are 10 classes"):
        export(build("resnet8", 7), tmp_path / "model.onnx", **settings)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_rejected(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = tmp_path / "nowhere" / "model.onnx"
    with pytest.raises(PsysError, match=r"cannot write .*nowhere.*No such file"):
        export(build("resnet8", 10), path, **settings)


def test_training_does_not_import_onnx(tmp_path: Path) -> None:
    done = run(str(PROGRAMS / "imported_onnx.py"), cwd=tmp_path)
    assert (done.code, done.out) == (0, "[]\n")
