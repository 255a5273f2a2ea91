"""The evaluation of a run made by hand, whose snapshots are of known quality."""

import copy
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from psys.augment.batch import normalise
from psys.compute.flat import FlatModel
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.models.registry import build
from psys.ps.events import (
    RunDiverged,
    RunEnded,
    RunEvent,
    SettingsChanged,
    SnapshotEvaluated,
    SnapshotSaved,
    UpdateApplied,
)
from psys.run import results
from psys.run.description import as_metadata
from psys.run.directory import RunDirectory
from psys.run.events import EventLog, read_events
from psys.run.results import evaluate_run
from psys.run.snapshots import save_snapshot
from tests.support.runs import (
    FIRST,
    GOOD,
    LAST,
    brightness_model,
    end,
    start,
    trained_events,
    trained_run,
    update,
    write_events,
    write_tiny_store,
)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    return write_tiny_store(tmp_path_factory.mktemp("stores") / "tiny")


def extension(store: PreparedStore) -> list[RunEvent]:
    """The events of two more updates of a run that was evaluated, and of their snapshot."""
    return [
        start(store.content_hash, "resume", LAST),
        update(LAST + 1, workers=("worker2",)),
        update(LAST + 2, workers=("worker3",)),
        SnapshotSaved(version=LAST + 2, epochs=4.0, seconds=8.0),
    ]


def steady(events: list[RunEvent]) -> list[RunEvent]:
    """The events with a usual loss in all updates, each computed at the version before."""
    return [replace(event, loss=1.0, staleness=(0,)) if isinstance(event, UpdateApplied) else event for event in events]


Evaluate = Callable[[RunDirectory, list[RunEvent]], dict[str, Any]]


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation exports nothing: the export takes seconds."""
    monkeypatch.setattr(results, "_export", lambda *unused: {"images": 0, "max_difference": 0.0, "agreement": 1.0})


@pytest.fixture
def evaluate(without_export: None) -> Evaluate:
    """Evaluates a run with the given events, without the export."""

    def evaluate(run: RunDirectory, events: list[RunEvent]) -> dict[str, Any]:
        write_events(run, events)
        return evaluate_run(run, Console(file=io.StringIO()))

    return evaluate


def test_best_snapshot_is_chosen_tested_and_exported(tmp_path: Path, tiny_store: PreparedStore) -> None:
    run = trained_run(tmp_path, tiny_store)
    write_events(run, trained_events(tiny_store))
    good = load_file(run.snapshot_path(GOOD))
    printed = io.StringIO()
    result = evaluate_run(run, Console(file=printed, width=100))
    assert (result["best"]["version"], result["last"]["version"]) == (GOOD, LAST)
    assert [result[role]["validation_accuracy"] for role in ("best", "last")] == [1.0, 0.0]
    assert [result[role]["test"]["accuracy"] for role in ("best", "last")] == [1.0, 0.0]
    assert "100.0% (epoch 2.0)" in printed.getvalue()
    best = build("mlp2", 2)
    best.load_state_dict(load_file(run.path / "best.safetensors"))
    assert torch.equal(FlatModel(copy.deepcopy(best)).parameters, good["parameters"])
    images = np.array(tiny_store.split("test").images)
    (probabilities,) = onnxruntime.InferenceSession(run.path / "model.onnx").run(None, {"images": images})
    with torch.inference_mode():
        pixels = normalise(torch.from_numpy(images), tiny_store.channel_mean, tiny_store.channel_std)
        expected = best.eval()(pixels).softmax(1)
    assert np.allclose(probabilities, expected, atol=1e-4)
    assert run.complete
    assert run.result() == json.loads(json.dumps(result))
    assert {path.name for path in run.path.iterdir()} == {
        *("best.safetensors", "last.safetensors", "model.json", "model.onnx"),
        *("curves.png", "confusion.png", "right.npz", "result.json"),
        *("config.yaml", "environment.json", "events.jsonl", "logs", "snapshots"),
    }
    with pytest.raises(PsysError, match="was evaluated before"):
        evaluate_run(run, Console(file=printed))


def test_best_and_last_snapshot_stay_and_evaluations_are_events(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    run = trained_run(tmp_path, tiny_store)
    evaluate(run, trained_events(tiny_store))
    assert set(run.snapshots.iterdir()) == {run.snapshot_path(GOOD), run.snapshot_path(LAST)}
    found = [event for event in read_events(run.events) if isinstance(event, SnapshotEvaluated)]
    assert [(event.version, event.images) for event in found] == [(FIRST, 4), (GOOD, 4), (LAST, 4)]
    assert [event.accuracy for event in found[1:]] == [1.0, 0.0]


def test_extended_run_is_evaluated_again_from_its_evaluations(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    """The snapshot of FIRST is gone by then; the best is still the one of the first evaluation."""
    run = trained_run(tmp_path, tiny_store)
    before = evaluate(run, trained_events(tiny_store))
    run.result_file.unlink()
    last = brightness_model(False)
    save_snapshot(last.parameters, last.statistics, run.snapshot_path(LAST + 2))
    after = evaluate(run, extension(tiny_store))
    assert after["points"][:3] == before["points"]
    assert len(after["points"]) == 4
    assert (after["best"]["version"], after["last"]["version"]) == (GOOD, LAST + 2)
    assert len([event for event in read_events(run.events) if isinstance(event, SnapshotEvaluated)]) == 4
    assert before["batches"]["batches"] == LAST
    assert after["batches"] == {}  # the resumed run was killed
    assert (after["updates"], after["train_seconds"], after["images_per_second"]) == (8, 8.0, 2.0)
    assert before["workers"] == after["workers"] == 2


def test_changed_settings_are_segments_of_the_result(
    tmp_path: Path, tiny_store: PreparedStore, without_export: None
) -> None:
    run = trained_run(tmp_path, tiny_store)
    first, *rest = trained_events(tiny_store)
    changes: list[RunEvent] = [
        SettingsChanged(version=4, changed={"schedule.learning_rate": (0.1, 0.2), "epochs": (2, 3)}),
        start(tiny_store.content_hash, "resume", 4),
        update(5),
        SettingsChanged(version=5, changed={"schedule.learning_rate": (0.2, 0.05)}),
        start(tiny_store.content_hash, "resume", 4),
    ]
    write_events(run, [first, *rest[:6], *changes, *rest[6:]])
    printed = io.StringIO()
    result = evaluate_run(run, Console(file=printed, width=120))
    changed = {"schedule.learning_rate": (0.1, 0.05), "epochs": (2, 3)}
    assert result["segments"] == [{"version": 4, "epoch": 2.0, "changed": changed}]
    assert "at epoch 2: schedule.learning_rate 0.1 → 0.05, epochs 2 → 3" in printed.getvalue()
    assert result["diverged"] is None


def test_snapshot_whose_file_is_gone_keeps_its_training_figures(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    run = trained_run(tmp_path, tiny_store)
    run.snapshot_path(LAST).unlink()
    result = evaluate(run, trained_events(tiny_store))
    assert [point["train_loss"] for point in result["points"]] == [20.0, 40.0, 60.0]
    assert result["points"][-1]["validation_loss"] is None
    assert result["last"]["version"] == GOOD


def test_curves_of_an_extended_run_without_held_out_images_are_complete(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    """No evaluation is in the events, and the snapshot of FIRST is gone."""
    run = trained_run(tmp_path, tiny_store, validation_share=0.0)
    before = evaluate(run, trained_events(tiny_store))
    run.result_file.unlink()
    last = brightness_model(True)
    save_snapshot(last.parameters, last.statistics, run.snapshot_path(LAST + 2))
    changed = SettingsChanged(version=LAST, changed={"epochs": (3, 4)})
    after = evaluate(run, [changed, *extension(tiny_store)])
    assert after["points"][:3] == before["points"]
    assert [point["epoch"] for point in after["points"]] == [1.0, 2.0, 3.0, 4.0]
    assert after["best"]["version"] == after["last"]["version"] == LAST + 2


def test_evaluations_of_versions_that_were_computed_again_do_not_count(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    events = trained_events(tiny_store)
    undone = SnapshotEvaluated(version=FIRST, loss=0.0, accuracy=1.0, images=4)
    resume = start(tiny_store.content_hash, "resume")
    result = evaluate(trained_run(tmp_path, tiny_store), [*events[:3], undone, resume, *events[1:]])
    assert result["best"]["version"] == GOOD
    assert result["points"][0]["validation_loss"] > 0


def test_result_has_accuracy_by_class_and_confusion_matrix(
    tmp_path: Path, tiny_store: PreparedStore, without_export: None
) -> None:
    run = trained_run(tmp_path, tiny_store, validation_share=0.0)
    model = brightness_model(True)
    with torch.no_grad():
        list(model.module.parameters())[-1].copy_(torch.tensor([1e3, 0.0]))  # every image is taken for dark
    save_snapshot(model.parameters, model.statistics, run.snapshot_path(LAST))
    printed = io.StringIO()
    write_events(run, trained_events(tiny_store))
    result = evaluate_run(run, Console(file=printed, width=100))
    test = result["best"]["test"]
    assert test["confusion"] == [[5, 0], [5, 0]]
    right = np.load(run.path / "right.npz", allow_pickle=False)
    assert right["best"].mean() == test["accuracy"] == 0.5
    assert np.array_equal(right["best"], tiny_store.split("test").labels == 0)
    assert test["classes"] == [
        {"class": "dark", "images": 5, "accuracy": 1.0},
        {"class": "bright", "images": 5, "accuracy": 0.0},
    ]
    assert "bright 0.0%, dark 100.0%" in printed.getvalue()
    assert (run.path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_files_of_the_network_describe_their_use(tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate) -> None:
    run = trained_run(tmp_path, tiny_store)
    evaluate(run, trained_events(tiny_store))
    expected = {
        **{"model": "mlp2", "run": "r", "version": GOOD, "classes": ["dark", "bright"], "image_size": [32, 32]},
        **{"mean": list(tiny_store.channel_mean), "std": list(tiny_store.channel_std)},
    }
    described = json.loads((run.path / "model.json").read_text(encoding="utf-8"))
    assert {name: described[name] for name in expected} == expected
    for role, version in (("best", GOOD), ("last", LAST)):
        with safe_open(run.path / f"{role}.safetensors", "pt") as file:
            assert file.metadata() == as_metadata({**described, "version": version})


def test_training_figures_are_means_by_images_since_the_previous_snapshot(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    result = evaluate(trained_run(tmp_path, tiny_store), trained_events(tiny_store))
    # For versions v and v + 1: (1 * (10 v + 1) + 3 * (10 (v + 1) + 3)) / 4.
    assert [point["train_loss"] for point in result["points"]] == [20.0, 40.0, 60.0]
    assert [point["epoch"] for point in result["points"]] == [1.0, 2.0, 3.0]
    assert (result["updates"], result["workers"], result["train_seconds"]) == (6, 2, 6.0)
    assert (result["staleness_mean"], result["staleness_max"], result["images_per_second"]) == (2.0, 3, 2.0)
    assert result["batches"] == {
        **{"batches": 6, "leased": 6, "applied": 6, "reissued": 0, "duplicates": 0},
        **{"expired": 0, "damaged": 0, "unfinished": 0, "lost": 0},
    }


def test_updates_computed_again_after_a_resume_count_once(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    events = trained_events(tiny_store)
    undone = [update(version, loss=1e6, staleness=(99,)) for version in (1, 2)]
    resume = start(tiny_store.content_hash, "resume")
    result = evaluate(trained_run(tmp_path, tiny_store), [events[0], *undone, resume, *events[1:]])
    assert result["points"][0]["train_loss"] == 20.0
    assert (result["updates"], result["staleness_max"]) == (6, 3)


def test_without_held_out_images_the_last_snapshot_is_the_best(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    result = evaluate(trained_run(tmp_path, tiny_store, validation_share=0.0), trained_events(tiny_store))
    assert (result["best"]["version"], result["best"]["validation_loss"]) == (LAST, None)


def test_killed_run_is_evaluated_and_reports_no_batch_accounting(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    *events, last = trained_events(tiny_store)
    assert isinstance(last, RunEnded)
    assert evaluate(trained_run(tmp_path, tiny_store), events)["batches"] == {}


def test_damaged_snapshot_is_named_and_everything_else_is_kept(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    run = trained_run(tmp_path, tiny_store)
    snapshot = run.snapshot_path(GOOD)
    content = snapshot.read_bytes()
    snapshot.write_bytes(content[:-9])
    with pytest.raises(PsysError, match=f"cannot load .*{snapshot.name}"):
        evaluate(run, trained_events(tiny_store))
    assert not run.complete
    snapshot.write_bytes(content)
    assert evaluate_run(run, Console(file=io.StringIO()))["best"]["version"] == GOOD


def test_of_a_diverged_run_only_the_sound_snapshots_are_evaluated(
    tmp_path: Path, tiny_store: PreparedStore, without_export: None
) -> None:
    run = trained_run(tmp_path, tiny_store)
    *events, last = steady(trained_events(tiny_store))
    write_events(run, [*events, RunDiverged(version=5, batch=3, seconds=6.0), last])
    printed = io.StringIO()
    result = evaluate_run(run, Console(file=printed, width=120))
    assert result["diverged"] == {"version": 4, "epoch": 2.0}
    assert result["best"]["version"] == result["last"]["version"] == GOOD
    assert [point["epoch"] for point in result["points"]] == [1.0, 2.0]
    assert "after epoch 2 (version 4): later snapshots are left out" in printed.getvalue()
    assert [e.version for e in read_events(run.events) if isinstance(e, SnapshotEvaluated)] == [FIRST, GOOD]
    json.dumps(run.result(), allow_nan=False)


def test_diverged_run_without_a_sound_snapshot_is_an_error_with_advice(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    run = trained_run(tmp_path, tiny_store)
    events = trained_events(tiny_store)
    events[3] = update(2, loss=math.nan)
    expected = (
        f"training diverged: {run.path} has no sound snapshot; there is no sound checkpoint: "
        f"`--resume {run.path} --schedule.learning-rate 0.05` starts it over"
    )
    with pytest.raises(PsysError, match=re.escape(expected)):
        evaluate(run, events)
    assert not run.complete


def test_snapshot_whose_evaluation_is_not_finite_and_later_ones_do_not_count(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    run = trained_run(tmp_path, tiny_store)
    model = brightness_model(True)
    save_snapshot(model.parameters * math.inf, model.statistics, run.snapshot_path(LAST))
    result = evaluate(run, steady(trained_events(tiny_store)))
    assert result["diverged"] == {"version": 5, "epoch": 2.5}
    assert result["last"]["version"] == GOOD


def test_loss_that_is_not_finite_on_the_test_images_is_an_error(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    run = trained_run(tmp_path, tiny_store, validation_share=0.0)
    model = brightness_model(True)
    save_snapshot(model.parameters * math.inf, model.statistics, run.snapshot_path(LAST))
    with pytest.raises(PsysError, match="training diverged: the loss of version 6 on the test images is nan"):
        evaluate(run, trained_events(tiny_store))


def test_loss_that_was_not_finite_long_ago_is_left_out(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    run = trained_run(tmp_path, tiny_store)
    events = trained_events(tiny_store)
    events[1] = update(1, loss=math.inf)
    events[-1:] = [*(update(version, loss=1.0) for version in range(7, 200)), end()]
    result = evaluate(run, events)
    assert result["diverged"] is None
    assert [point["train_loss"] for point in result["points"]] == [None, 40.0, 60.0]


def test_run_without_a_snapshot_is_an_error(tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate) -> None:
    with pytest.raises(PsysError, match="has no snapshot to evaluate"):
        evaluate(trained_run(tmp_path, tiny_store), [start(tiny_store.content_hash), update(1)])


def test_snapshot_without_an_update_before_it_is_an_error(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    events: list[RunEvent] = [start(tiny_store.content_hash), SnapshotSaved(version=2, epochs=1.0, seconds=1.0)]
    with pytest.raises(PsysError, match=r"events\.jsonl has no update before the snapshot of version 2"):
        evaluate(trained_run(tmp_path, tiny_store), events)


def test_store_other_than_the_one_trained_on_is_refused(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    with pytest.raises(PsysError, match="is not the store that"):
        evaluate(trained_run(tmp_path, tiny_store), [start("0"), *trained_events(tiny_store)[1:]])


def test_run_that_is_still_being_written_is_refused(
    tmp_path: Path, tiny_store: PreparedStore, evaluate: Evaluate
) -> None:
    run = trained_run(tmp_path, tiny_store)
    write_events(run, trained_events(tiny_store))
    with EventLog(run.events), pytest.raises(PsysError, match="still going on"):
        evaluate_run(run, Console(file=io.StringIO()))
