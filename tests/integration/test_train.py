"""Whole runs as a user starts them: every mode, every launcher, and the files that a run leaves."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from safetensors.torch import load_file

from psys.data.store import PreparedStore
from psys.ps.events import RunEnded, WorkerLeft
from psys.run.assembly import initial_model
from psys.run.directory import RunDirectory
from tests.support.processes import (
    PS,
    ROOT,
    Done,
    audited,
    events,
    finished,
    run,
    small_run,
    started,
    updates,
    updating,
    wait_until,
)
from tests.support.reference import computed_again, same_bits
from tests.support.stores import write_small_store

BATCHES_PER_EPOCH = 9  # 160 images without 20 that are held out, 16 in each batch
TORCHRUN = ("-m", "torch.distributed.run")
SYNC = ("--mode", "sync", "--epochs", "6", "--export")


def result_of(path: Path, epochs: int) -> dict[str, Any]:
    """The result of a complete run, in which every batch was applied once."""
    applied = [batch for update in updates(path) for batch in update.batches]
    assert sorted(applied) == list(range(epochs * BATCHES_PER_EPOCH))
    end, result = audited(path), RunDirectory(path).result()
    assert (end.applied, end.unfinished) == (len(applied), 0)
    assert result["batches"]["applied"] == len(applied)
    assert result["updates"] == len(updates(path))
    return result


def staleness(path: Path) -> list[int]:
    return [versions for update in updates(path) for versions in update.staleness]


def check_learned(result: dict[str, Any]) -> None:
    """The training accuracy of the last epoch is far above that of guessing among ten classes, and the loss fell."""
    first, *_, last = result["points"]
    assert last["train_accuracy"] > 0.17
    assert last["train_loss"] < first["train_loss"]


@pytest.fixture(scope="module")
def sync_run(small_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A complete run in mode sync, and what it printed."""
    folder = tmp_path_factory.mktemp("sync")
    return folder / "runs" / "r", run(PS, *small_run(small_store_path, "r", *SYNC), cwd=folder)


def test_sync_run_leaves_results_and_a_network_for_onnx_runtime(
    sync_run: tuple[Path, Done], small_store_path: Path
) -> None:
    path, done = sync_run
    assert done.code == 0, done.err
    names = {"config.yaml", "environment.json", "events.jsonl", "curves.png", "best.safetensors", "last.safetensors"}
    names |= {"model.json", "model.onnx", "confusion.png", "right.npz", "result.json"}
    names |= {"checkpoints", "snapshots", "logs"}
    assert names == set(os.listdir(path))
    result = result_of(path, epochs=6)
    check_learned(result)
    assert [point["epoch"] for point in result["points"]] == pytest.approx([1, 2, 3, 4, 5, 6], abs=0.2)
    assert (result["workers"], set(staleness(path))) == (2, {0})
    assert all(len(update.workers) == 2 for update in updates(path))
    assert [left.reason for left in events(path, WorkerLeft)] == ["left", "left"]
    for words in ("test accuracy", "wall-clock", "images/s", "staleness", "applied / duplicated / lost"):
        assert words in done.out
    store = PreparedStore.open(small_store_path)
    session = onnxruntime.InferenceSession(path / "model.onnx")
    (probabilities,) = session.run(None, {"images": store.split("test").images[:7]})
    assert probabilities.shape == (7, 10)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(store.classes)


def test_sync_run_equals_a_run_in_one_process(sync_run: tuple[Path, Done]) -> None:
    path, _ = sync_run
    last = initial_model(RunDirectory(path).config(), classes=10)
    last.load(**computed_again(path, version=27))
    assert same_bits(load_file(path / "last.safetensors"), last.module.state_dict())


def test_ranks_of_torchrun_compute_the_same_bits_as_processes_of_a_local_run(
    sync_run: tuple[Path, Done], small_store_path: Path, tmp_path: Path
) -> None:
    """Two sync runs with one seed: two ranks are servers and two are workers, while the local run has one server."""
    ranks = (*TORCHRUN, "--standalone", "--nproc-per-node", "4")
    done = run(*ranks, PS, *small_run(small_store_path, "r", *SYNC, "--servers", "2"), cwd=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "runs" / "r"
    assert result_of(path, epochs=6)["workers"] == 2
    assert same_bits(load_file(path / "last.safetensors"), load_file(sync_run[0] / "last.safetensors"))


def test_async_run_of_one_rank_of_torchrun(small_store_path: Path, tmp_path: Path) -> None:
    async_run = small_run(small_store_path, "r", "--mode", "async", "--epochs", "2")
    done = run(*TORCHRUN, "--standalone", "--nproc-per-node", "1", PS, *async_run, cwd=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "runs" / "r"
    result = result_of(path, epochs=2)
    assert result["workers"] == 2
    assert result["updates"] == len(staleness(path))
    assert result["staleness_max"] == max(staleness(path))


def test_ssp_run_with_two_servers_topk_and_prefetch(small_store_path: Path, tmp_path: Path) -> None:
    mode = ("--mode", "ssp", "--staleness", "1", "--servers", "2", "--wire", "topk", "--prefetch", "1")
    # The gradients are stale for two reasons, which needs a lower learning rate.
    more = ("--topk-share", "0.1", "--schedule.learning-rate", "0.02", "--epochs", "12")
    done = run(PS, *small_run(small_store_path, "r", *mode, *more), cwd=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "runs" / "r"
    check_learned(result_of(path, epochs=12))
    assert 1 <= max(staleness(path)) <= 2


def test_24_workers_on_one_host(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    arguments = small_run(small_store_path, "r", "--epochs", "5000", "--batch-size", "4", workers=24)
    with started(PS, *arguments, cwd=tmp_path) as process:
        wait_until(lambda: len(updating(path)) == 24, "an update of every worker", process)
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    assert [left.reason for left in events(path, WorkerLeft)] == ["left"] * 24
    audited(path)


def test_encoded_store_trains_and_resumes_without_ray_opencv_and_arrow(tmp_path: Path) -> None:
    """In all processes modules that cannot be imported take their places; the images are resized while training."""
    store = write_small_store(tmp_path / "encoded", 8, 2, layout="encoded").path
    for name in ("ray", "cv2", "pyarrow"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    path = tmp_path / "runs" / "r"
    plan = tmp_path / "plan.yaml"
    plan.write_text("faults: [{worker: 0, step: 5, kind: slow, seconds: 2}]")  # the run is stopped in this step
    settings = (
        "--mode",
        "sync",
        "--epochs",
        "8",
        "--image-size",
        "24",
        "--snapshot-epochs",
        "8",
        "--faults",
        str(plan),
    )
    with started(PS, *small_run(store, "r", *settings), cwd=tmp_path, env=environment) as process:
        wait_until(lambda: len(updates(path)) > 3, "some updates", process)
        process.send_signal(signal.SIGTERM)
        assert finished(process).code == 130
    done = run(PS, "--resume", str(path), cwd=tmp_path, env=environment)
    assert done.code == 0, done.err
    assert len(events(path, RunEnded)) == 2
    assert audited(path).unfinished == 0
    assert "ray was imported" in run("-c", "import ray", cwd=tmp_path, env=environment).err


def test_diverged_run_is_an_error(small_store_path: Path, tmp_path: Path) -> None:
    arguments = small_run(small_store_path, "r", "--epochs", "2", "--schedule.learning-rate", "1e30")
    done = run(PS, *arguments, cwd=tmp_path)
    assert done.code == 2
    (error,) = [line for line in done.err.splitlines() if line.startswith("psys: error: ")]
    assert "diverged" in error
    assert "--schedule.learning-rate" in error
    path = tmp_path / "runs" / "r"
    assert audited(path).damaged > 0
    assert not (path / "checkpoints").exists()
    evaluated = run("-m", "psys", "evaluate", str(path), cwd=tmp_path)
    assert evaluated.code == 2
    assert "no sound snapshot; there is no sound checkpoint: `--resume" in evaluated.err
    assert not (path / "model.onnx").exists()
