"""Whole runs as a user starts them: every mode, every way to launch, and what is left afterwards."""

import json
import os
import shutil
import signal
from pathlib import Path

import onnxruntime
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from psys.data.store import PreparedStore
from psys.run.events import read_events
from tests.support.processes import (
    PS,
    ROOT,
    family,
    finished,
    join_address,
    run,
    small_run,
    started,
    updates,
    wait_until,
    workers_of,
)
from tests.support.stores import write_small_store

BATCHES_PER_EPOCH = 9  # 160 images less the tenth held out, in sixteens


def check_books(run_path: Path, epochs: int) -> dict:
    """Every batch of the run is in exactly one update, and the result says so."""
    applied = [batch for update in updates(run_path) for batch in update["batches"]]
    assert sorted(applied) == list(range(epochs * BATCHES_PER_EPOCH))
    result = json.loads((run_path / "result.json").read_text())
    assert result["batches"]["applied"] == len(applied)
    assert (result["batches"]["unfinished"], result["batches"]["lost"]) == (0, 0)
    return result


def result_is_above_chance(run_path: Path) -> bool:
    """The training accuracy of the last epoch beats guessing among ten classes by far, and the loss fell."""
    first, *_, last = json.loads((run_path / "result.json").read_text())["points"]
    return bool(last["train_accuracy"] > 0.17 and last["train_loss"] < first["train_loss"])


@pytest.mark.parametrize(("mode", "bound"), [("sync", 0), ("async", None)])  # ssp: in the next test
def test_a_run_in_every_mode(small_store_path: Path, tmp_path: Path, mode: str, bound: int | None) -> None:
    arguments = small_run(small_store_path, "r", "--mode", mode, "--epochs", "6")
    done = run(PS, *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "runs" / "r"
    assert result_is_above_chance(path)
    names = {"config.yaml", "environment.json", "events.jsonl", "curves.png", "best.safetensors", "last.safetensors"}
    assert names | {"model.onnx", "result.json"} <= set(os.listdir(path))
    result = check_books(path, epochs=6)
    assert len(result["points"]) == 6
    staleness = [s for update in updates(path) for s in update["staleness"]]
    assert (result["staleness_max"], result["workers"]) == (max(staleness), 2)
    if bound is not None:
        assert max(staleness) <= bound
    assert len(updates(path)) == len(staleness) if mode == "async" else len(updates(path)) < len(staleness)
    for word in ("test accuracy", "wall-clock", "images/s", "staleness", "applied / duplicated / lost"):
        assert word in done.out
    store = PreparedStore.open(small_store_path)
    session = onnxruntime.InferenceSession(path / "model.onnx")
    (probabilities,) = session.run(None, {"images": store.split("test").images[:7]})
    assert probabilities.shape == (7, 10)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(store.classes)


def test_a_worker_that_prefetches_ends_where_one_that_does_not_for_it_looks_exactly_ahead(
    small_store_path: Path, tmp_path: Path
) -> None:
    """In real processes: of four updates, for rounding grows with each. In a single worker's slots by turns."""

    def trained(name: str, *more: str) -> Tensor:
        once = ("--mode", "async", "--epochs", "1", "--batch-size", "40", "--schedule.kind", "constant", *more)
        done = run(PS, *small_run(small_store_path, name, *once, workers=1), cwd=tmp_path)
        assert done.code == 0, done.err
        path = tmp_path / "runs" / name
        assert len(updates(path)) == 4
        tensors = load_file(path / "last.safetensors")
        return torch.cat([tensors[name].flatten() for name in sorted(tensors) if name.endswith(("weight", "bias"))])

    plain, exact = trained("plain"), trained("exact", "--prefetch", "1")
    late = trained("late", "--prefetch", "1", "--no-optimizer.look-ahead")
    assert (exact - plain).norm() < 0.02 * (late - plain).norm()


def test_several_servers_a_sparse_wire_and_prefetch_together(small_store_path: Path, tmp_path: Path) -> None:
    engine = ("--mode", "ssp", "--staleness", "1", "--servers", "2", "--wire", "topk", "--prefetch", "1")
    # Gradients that come late, for two reasons, want a lower rate.
    gently = ("--topk-share", "0.1", "--schedule.learning-rate", "0.02", "--epochs", "12")
    done = run(PS, *small_run(small_store_path, "r", *engine, *gently), cwd=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "runs" / "r"
    check_books(path, epochs=12)
    assert result_is_above_chance(path)
    staleness = [s for update in updates(path) for s in update["staleness"]]
    assert 1 <= max(staleness) <= 2


def test_24_workers_on_one_host(small_store_path: Path, tmp_path: Path) -> None:
    """They start, each trains, all end."""
    arguments = small_run(small_store_path, "r", "--epochs", "1", "--batch-size", "4", "--threads", "1", workers=24)
    done = run(PS, *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "runs" / "r"
    assert json.loads((path / "result.json").read_text())["batches"]["lost"] == 0
    assert sorted(batch for update in updates(path) for batch in update["batches"]) == list(range(35))
    assert len({worker for update in updates(path) for worker in update["workers"]}) == 24
    events = list(read_events(path / "events.jsonl"))
    assert [event["reason"] for event in events if event["event"] == "leave"] == ["left"] * 24


def test_an_encoded_store_trains_and_resumes_without_what_prepared_it(tmp_path: Path) -> None:
    """At a size of its own; Ray, OpenCV and Arrow are replaced by modules that cannot be imported, in all processes."""
    store = write_small_store(tmp_path / "encoded", 8, 2, layout="encoded").path
    for name in ("ray", "cv2", "pyarrow"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    path = tmp_path / "runs" / "r"
    settings = ("--mode", "sync", "--epochs", "20", "--image-size", "24", "--snapshot-epochs", "10")
    with started(PS, *small_run(store, "r", *settings), cwd=tmp_path, env=env) as process:
        wait_until(lambda: len(updates(path)) > 3, "some updates")
        process.send_signal(signal.SIGTERM)
        assert finished(process).code == 130
    done = run(PS, "--resume", str(path), cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    assert json.loads((path / "result.json").read_text())["batches"]["lost"] == 0
    control = run("-c", "import ray", cwd=tmp_path, env=env)
    assert "ray was imported" in control.err


def test_a_worker_taken_for_dead_is_recognised_when_it_wakes(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"

    def events(kind: str) -> list[dict]:
        return [event for event in read_events(path / "events.jsonl") if event["event"] == kind]

    arguments = small_run(small_store_path, "r", "--mode", "sync", "--epochs", "5000", "--heartbeat-timeout", "1")
    with started(PS, *arguments, cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) >= 5, "five updates")
        sleeper = workers_of(process)[0]
        sleeper.suspend()
        wait_until(lambda: bool(events("leave")), "the sleeper being given up")
        alone = len(updates(path))
        wait_until(lambda: len(updates(path)) > alone + 3, "updates by the other worker alone")
        sleeper.resume()
        wait_until(lambda: len(events("join")) == 3, "the sleeper's return")
        awake = len(updates(path))
        wait_until(lambda: any(len(u["workers"]) == 2 for u in updates(path)[awake:]), "an update of both")
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    applied = [batch for update in updates(path) for batch in update["batches"]]
    assert sorted(applied) == list(range(len(applied)))
    assert events("end")[0]["lost"] == 0


def test_a_run_goes_on_with_a_joined_worker_when_the_local_one_was_told_to_leave(
    small_store_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "r"
    joining = ("--role", "worker", "--store", str(small_store_path), "--threads", "1", "--join")
    arguments = small_run(small_store_path, "r", "--epochs", "5000", workers=1)
    with (
        started(PS, *arguments, cwd=tmp_path) as process,
        started(PS, *joining, join_address(process), cwd=tmp_path) as newcomer,
    ):
        wait_until(lambda: len({worker for u in updates(path) for worker in u["workers"]}) == 2, "updates by both")
        (local,) = workers_of(process)
        local.terminate()
        wait_until(lambda: any(e["event"] == "leave" for e in read_events(path / "events.jsonl")), "its departure")
        alone = len(updates(path))
        wait_until(lambda: len(updates(path)) > alone + 20, "updates by the newcomer alone")
        process.send_signal(signal.SIGINT)
        joined, done = finished(newcomer), finished(process)
    assert (joined.code, done.code) == (0, 130), joined.err + done.err
    reasons = [event["reason"] for event in read_events(path / "events.jsonl") if event["event"] == "leave"]
    assert reasons == ["left", "left"]
    applied = [batch for update in updates(path) for batch in update["batches"]]
    assert sorted(applied) == list(range(len(applied)))


def test_a_run_whose_workers_cannot_live_ends_and_keeps_what_it_has(small_store_path: Path, tmp_path: Path) -> None:
    path, store = tmp_path / "runs" / "r", tmp_path / "store"
    shutil.copytree(small_store_path, store)
    with started(PS, *small_run(store, "r", "--epochs", "5000"), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) >= 5, "five updates")
        store.rename(tmp_path / "away")
        for worker in workers_of(process):
            worker.kill()
        done = finished(process)
    assert done.code == 2
    assert "was killed by SIGKILL" in done.err
    assert done.err.count("it died too often in a row and is not restarted") == 2
    assert "no worker is left" in done.err
    (tmp_path / "away").rename(store)
    assert run("-m", "psys.cli", "evaluate", str(path), cwd=tmp_path).code == 0
    result = json.loads((path / "result.json").read_text())
    assert result["last"]["version"] == updates(path)[-1]["version"]
    assert (path / "model.onnx").exists()


def test_a_killed_supervisor_takes_its_children_along_after_they_saved(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    with started(PS, *small_run(small_store_path, "r", "--epochs", "5000"), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) >= 5, "five updates")
        children = family(process)[1:]
        process.kill()
        wait_until(lambda: not any(child.is_running() for child in children), "the end of all children")
    end = next(event for event in read_events(path / "events.jsonl") if event["event"] == "end")
    assert (end["applied"], end["lost"]) == (len(updates(path)), 0)


def test_ctrl_c_stops_saves_and_leaves_no_process(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    with started(PS, *small_run(small_store_path, "r", "--epochs", "5000"), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) >= 5, "five updates")
        members = family(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        done = finished(process)
        assert not [member for member in members if member.is_running()]
    assert done.code == 130
    assert "Traceback" not in done.err
    applied = [batch for update in updates(path) for batch in update["batches"]]
    assert len(applied) == len(set(applied))
    end = next(event for event in read_events(path / "events.jsonl") if event["event"] == "end")
    assert (end["applied"], end["lost"]) == (len(applied), 0)
    (checkpoint,) = (event for event in read_events(path / "events.jsonl") if event["event"] == "checkpoint")
    assert checkpoint["version"] == updates(path)[-1]["version"]


def test_a_worker_joins_a_running_server(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    joining = ("--role", "worker", "--store", str(small_store_path), "--threads", "1", "--join")
    arguments = small_run(small_store_path, "r", "--mode", "sync", "--epochs", "5000")
    with (
        started(PS, *arguments, cwd=tmp_path) as process,
        started(PS, *joining, join_address(process), cwd=tmp_path) as newcomer,
    ):
        wait_until(lambda: any(len(u["workers"]) == 3 for u in updates(path)), "an update of three workers")
        process.send_signal(signal.SIGINT)
        joined, done = finished(newcomer), finished(process)
    assert (joined.code, done.code) == (0, 130), joined.err + done.err
    applied = [batch for update in updates(path) for batch in update["batches"]]
    assert sorted(applied) == list(range(len(applied)))


@pytest.mark.parametrize(("processes", "servers"), [(1, 1), (4, 2)])
def test_torchrun(small_store_path: Path, tmp_path: Path, processes: int, servers: int) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes))
    standalone = ("--standalone",) if processes > 1 else ()
    arguments = small_run(small_store_path, "r", "--epochs", "2", "--servers", str(servers))
    done = run(*torchrun, *standalone, PS, *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    assert check_books(tmp_path / "runs" / "r", epochs=2)["workers"] == 2


@pytest.mark.parametrize("more", [(), ("--servers", "2", "--listen", "localhost")])
def test_every_port_of_a_run_is_on_loopback(small_store_path: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    path = tmp_path / "runs" / "r"
    with started(PS, *small_run(small_store_path, "r", "--epochs", "5000", *more), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) >= 3, "three updates")
        listening = [
            connection.laddr.ip
            for member in family(process)
            for connection in member.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}
