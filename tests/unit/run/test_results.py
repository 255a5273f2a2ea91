"""Results of a hand-made run whose snapshots are of known quality."""

import copy
import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from psys.augment.batch import normalise
from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.models.resnet import resnet
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory, save_snapshot
from psys.run.events import EventLog
from psys.run.results import finish

GOOD, LAST = 2, 3  # versions; the good one knows the held-out images by heart


@pytest.fixture
def run(small_store: PreparedStore, tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(RunConfig(name="r", runs=tmp_path, store=small_store.path, validation_share=0.2))
    torch.manual_seed(0)
    model = FlatModel(resnet(8))
    save_snapshot(model.parameters, model.statistics, run.snapshot_path(1))
    train = small_store.split("train")
    _, held = holdout(train.labels, 0.2, seed=0)
    views = normalise(torch.tensor(train.images[held]), small_store.channel_mean, small_store.channel_std)
    labels = torch.tensor(train.labels[held])
    parameters = torch.nn.Parameter(model.parameters)
    parameters.grad = model.gradient
    optimizer = torch.optim.Adam([parameters], lr=0.01)
    for _ in range(60):
        GradientStep(model, torch.float32)(views, labels)
        optimizer.step()
    save_snapshot(model.parameters, model.statistics, run.snapshot_path(GOOD))
    model.parameters.mul_(0.01)
    save_snapshot(model.parameters, model.statistics, run.snapshot_path(LAST))
    log = EventLog(run.events)
    log.write("start", store=small_store.content_hash)
    for version in (1, GOOD, LAST):
        for part in (1, 3):
            log.write(
                "update",
                version=version,
                seconds=float(version),
                batches=[0],
                workers=["worker0"],
                staleness=[part],
                images=part,
                loss=float(10 * version + part),
                accuracy=0.5,
            )
        log.write("snapshot", version=version, epochs=float(version), seconds=float(version))
    log.write("end", seconds=3.0, batches=6, applied=6, duplicates=0, lost=0)
    log.close()
    return run


def test_the_best_snapshot_is_chosen_tested_and_exported(run: RunDirectory, small_store: PreparedStore) -> None:
    good = load_file(run.snapshot_path(GOOD))
    console = Console(file=io.StringIO(), width=100)
    result = finish(run, console)
    assert (result["best"]["version"], result["last"]["version"]) == (GOOD, LAST)
    assert result["best"]["validation_accuracy"] > 0.8  # on the images it learnt; those not held out it has never seen
    best = resnet(8)
    best.load_state_dict(load_file(run.path / "best.safetensors"))
    assert torch.equal(FlatModel(copy.deepcopy(best)).parameters, good["parameters"])
    images = small_store.split("test").images
    session = onnxruntime.InferenceSession(run.path / "model.onnx")
    (probabilities,) = session.run(None, {"images": np.array(images)})
    model = best.eval()
    with torch.inference_mode():
        expected = model(normalise(torch.tensor(images), small_store.channel_mean, small_store.channel_std)).softmax(1)
    assert np.allclose(probabilities, expected, atol=1e-4)
    # Means since the snapshot before, by images: (1 * (10 v + 1) + 3 * (10 v + 3)) / 4.
    assert [point["train_loss"] for point in result["points"]] == [12.5, 22.5, 32.5]
    assert (result["staleness_mean"], result["staleness_max"], result["batches"]["lost"]) == (2.0, 3, 0)
    assert json.loads((run.path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert not run.snapshots.exists()
    with pytest.raises(PsysError, match="evaluated already"):
        finish(run, console)


def test_damage_is_named_and_costs_nothing_else(run: RunDirectory) -> None:
    snapshot = run.snapshot_path(GOOD)
    whole = snapshot.read_bytes()
    snapshot.write_bytes(whole[:-9])
    with pytest.raises(PsysError, match=f"cannot load .*{snapshot.name}"):
        finish(run, Console(file=io.StringIO()))
    snapshot.write_bytes(whole)
    assert finish(run, Console(file=io.StringIO()))["best"]["version"] == GOOD


def test_another_store_than_the_one_trained_on_is_refused(run: RunDirectory) -> None:
    run.events.write_text(run.events.read_text().replace('"store": "', '"store": "0'))
    with pytest.raises(PsysError, match="is not the store"):
        finish(run, Console(file=io.StringIO()))
