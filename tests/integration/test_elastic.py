"""Processes that are killed, stopped, replaced, resumed and joined: every batch is still applied exactly once."""

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from psys.errors import PsysError
from psys.ps.events import (
    CheckpointFailed,
    CheckpointSaved,
    FaultInjected,
    PushRefused,
    RunStarted,
    WorkerLeft,
)
from psys.run.directory import RunDirectory
from psys.training import read_settings, train
from tests.support.processes import (
    PS,
    audited,
    events,
    family,
    finished,
    join_address,
    resumes,
    run,
    servers_of,
    small_run,
    started,
    updates,
    updating,
    wait_until,
    workers_of,
)
from tests.support.reference import computed_again, same_bits, snapshot
from tests.support.stores import write_small_store

ENDLESS = ("--epochs", "5000")
SHARED_MEMORY = Path("/dev/shm")
VERSION = 27
"""A version with a snapshot, which two workers make at the end of epoch 6."""


def stop_reasons(path: Path) -> Counter[str]:
    return Counter(left.reason for left in events(path, WorkerLeft))


def has_snapshot(path: Path, version: int) -> bool:
    return RunDirectory(path).snapshot_path(version).exists()


def test_killed_worker_is_replaced_and_ctrl_c_saves(small_store_path: Path, tmp_path: Path) -> None:
    path, segments = tmp_path / "runs" / "r", set(SHARED_MEMORY.iterdir())
    more = ("--mode", "async", "--servers", "2", "--prefetch", "1", "--listen", "localhost")
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, *more), cwd=tmp_path) as process:
        wait_until(lambda: len(updating(path)) == 2, "updates of both workers", process)
        listening = [
            connection.laddr.ip
            for member in family(process)
            for connection in member.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        workers_of(process)[0].kill()
        wait_until(lambda: "worker2" in updating(path), "an update of the new worker", process)
        members = family(process)
        os.killpg(process.pid, signal.SIGINT)  # to the whole process group, as a terminal does
        done = finished(process)
        assert not [member for member in members if member.is_running()]
    assert done.code == 130, done.err
    assert len(listening) >= 3
    assert set(listening) <= {"127.0.0.1", "::1"}
    assert "was killed by SIGKILL" in done.err
    assert "Traceback" not in done.err
    assert stop_reasons(path) == {"disconnected": 1, "left": 2}
    assert audited(path).applied == len(updates(path))
    assert [saved.version for saved in events(path, CheckpointSaved)] == [updates(path)[-1].version]
    assert set(SHARED_MEMORY.iterdir()) <= segments
    assert not list(path.rglob("*.tmp"))


def test_killed_servers_are_restarted_and_compute_the_same_bits(small_store_path: Path, tmp_path: Path) -> None:
    path, plan = tmp_path / "runs" / "r", tmp_path / "plan.yaml"
    plan.write_text("faults: [{worker: 0, step: 10, kind: slow, seconds: 2}]")  # the server is killed in this round
    more = ("--mode", "sync", "--servers", "2", "--checkpoint-every", "7", "--faults", str(plan))
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, *more), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) == 10 and bool(events(path, CheckpointSaved)), "a checkpoint", process)
        servers_of(process)[1].kill()
        wait_until(lambda: bool(resumes(path)) and updates(path)[-1].version >= 14, "more updates", process)
        servers_of(process)[0].kill()
        wait_until(lambda: has_snapshot(path, VERSION), "the snapshot to compare", process)
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    for number in (0, 1):
        assert f"server {number} was killed by SIGKILL: all servers are restarted" in done.err
    assert len(resumes(path)) == 2
    assert {start.version for start in resumes(path)} <= {saved.version for saved in events(path, CheckpointSaved)}
    audited(path)
    assert same_bits(snapshot(path, VERSION), computed_again(path, VERSION))


def test_run_is_resumed_with_other_numbers_of_servers_and_workers(small_store_path: Path, tmp_path: Path) -> None:
    """Stopped, resumed with two servers, killed as a whole, and resumed with one server and three workers."""
    path = tmp_path / "runs" / "r"
    more = ("--mode", "sync", "--checkpoint-every", "5")
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, *more), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) > 3, "some updates", process)
        os.killpg(process.pid, signal.SIGTERM)  # to the whole process group, as torchrun and `timeout` do
        assert finished(process).code == 130
    assert events(path, CheckpointSaved)[-1].version == updates(path)[-1].version

    with started(PS, "--resume", str(path), "--servers", "2", cwd=tmp_path) as process:
        saved = len(events(path, CheckpointSaved))
        wait_until(
            lambda: has_snapshot(path, VERSION) and len(events(path, CheckpointSaved)) > saved, "a snapshot", process
        )
        for member in family(process):
            member.kill()
    assert same_bits(snapshot(path, VERSION), computed_again(path, VERSION))

    # Of the folder, not of the events: the servers may have been killed between the two.
    newest = max(int(each.name) for each in (path / "checkpoints").iterdir() if each.name.isdecimal())
    state = path / "checkpoints" / f"{newest:08d}" / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    with pytest.raises(PsysError, match="is damaged"):
        train(read_settings(["--resume", str(path)]))
    state.write_bytes(whole)
    with pytest.raises(PsysError, match="with this optimizer"):
        train(read_settings(["--resume", str(path), "--optimizer.kind", "adam"]))

    with started(PS, "--resume", str(path), "--servers", "1", "--workers", "3", cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)[-1].workers) == 3, "an update of three workers", process)
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    first, second, third = events(path, RunStarted)
    assert (first.event, second.event, third.event, third.version) == ("start", "resume", "resume", newest)
    audited(path)


@pytest.mark.parametrize(
    "more", [("async",), ("sync", "--servers", "2", "--wire", "topk", "--prefetch", "1")], ids=" ".join
)
def test_faults_of_a_plan_are_injected_and_cost_no_batch(
    small_store_path: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    path, plan = tmp_path / "runs" / "r", tmp_path / "plan.yaml"
    faults = [
        *("{worker: 0, step: 2, kind: nan}", "{worker: 1, step: 3, kind: slow, seconds: 0.2}"),
        *("{worker: 0, step: 4, kind: drop_reply}", "{worker: 1, step: 5, kind: hang, seconds: 2.5}"),
        "{worker: 0, step: 6, kind: kill}",
    ]
    plan.write_text(f"faults: [{', '.join(faults)}]")
    arguments = (*ENDLESS, "--faults", str(plan), "--heartbeat-timeout", "1", "--mode", *more)
    with started(PS, *small_run(small_store_path, "r", *arguments), cwd=tmp_path) as process:
        wait_until(lambda: "worker2" in updating(path), "an update of the worker after the killed one", process)
        wait_until(lambda: "silent" in stop_reasons(path), "the hanging worker to be taken for dead", process)
        given_up = len(updates(path))
        wait_until(lambda: "worker1" in updating(path, since=given_up), "an update of the hanging worker", process)
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    assert sorted((fault.worker, fault.step, fault.kind) for fault in events(path, FaultInjected)) == [
        ("worker0", 2, "nan"),
        ("worker0", 4, "drop_reply"),
        ("worker0", 6, "kill"),
        ("worker1", 3, "slow"),
        ("worker1", 5, "hang"),
    ]
    assert stop_reasons(path)["disconnected"] == 1
    refused = Counter(refused.receipt for refused in events(path, PushRefused))
    assert (refused["damaged"], refused["duplicate"] >= 1) == (1, True)
    audited(path)


@pytest.mark.parametrize("more", [(), ("--servers", "2", "--wire", "topk", "--prefetch", "1")], ids=" ".join)
def test_slow_worker_is_late_where_there_is_a_backup_and_its_batches_are_computed_again(
    small_store_path: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    path, plan = tmp_path / "runs" / "r", tmp_path / "plan.yaml"
    slow = [f"{{worker: 0, step: {step}, kind: slow, seconds: 1.5}}" for step in range(3)]
    plan.write_text(f"faults: [{', '.join(slow)}]")
    arguments = (*ENDLESS, "--faults", str(plan), "--mode", "sync", "--backup-workers", "1", *more)

    def late() -> set[int]:
        return {each.lease.batch for each in events(path, PushRefused) if each.receipt == "late"}

    with started(PS, *small_run(small_store_path, "r", *arguments, workers=3), cwd=tmp_path) as process:
        wait_until(lambda: len(events(path, FaultInjected)) == 3, "the last slow step", process)
        wait_until(lambda: bool(late()), "a late gradient", process)
        pushed = len(updates(path))
        wait_until(lambda: "worker0" in updating(path, since=pushed), "an update of the slow worker", process)
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    assert min(len(update.batches) for update in updates(path)[:-1]) >= 2
    assert any(attempt for update in updates(path) for attempt in update.attempts)
    end = audited(path)
    assert end.late == sum(each.receipt == "late" for each in events(path, PushRefused)) > 0


def test_worker_that_is_told_to_leave_waits_for_no_reply(small_store_path: Path, tmp_path: Path) -> None:
    """Its call is answered once the other worker, which hangs, has pushed its gradient."""
    path = tmp_path / "runs" / "r"
    more = ("--mode", "sync", "--prefetch", "1", "--heartbeat-timeout", "60")
    with started(PS, *small_run(small_store_path, "r", *ENDLESS, *more), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) > 3, "some updates", process)
        hanging, leaving = workers_of(process)
        hanging.suspend()
        used: list[float] = []

        def has_stopped_computing() -> bool:
            used.append(leaving.cpu_times().user)
            return len(used) > 25 and used[-1] == used[-25]

        wait_until(has_stopped_computing, "the other worker to wait", process)
        log = path / "logs" / f"{leaving.name().removeprefix('psys-')}.log"
        leaving.terminate()
        leaving.wait(timeout=8)  # after 10 seconds it would have been killed
        wait_until(lambda: bool(events(path, WorkerLeft)), "the leaving worker's event", process)
    assert stop_reasons(path) == {"left": 1}
    assert "Traceback" not in log.read_text()


def test_joined_worker_stays_when_servers_restart_and_the_local_worker_leaves(
    small_store_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "r"
    other_store = write_small_store(tmp_path / "other", train_per_class=2, test_per_class=1).path
    more = (*ENDLESS, "--checkpoint-every", "1")
    with started(PS, *small_run(small_store_path, "r", *more, workers=1), cwd=tmp_path) as process:
        joining = (PS, "--role", "worker", "--join", join_address(process), "--threads", "1")
        refused = run(*joining, "--store", str(other_store), cwd=tmp_path)
        (server,) = servers_of(process)
        with started(*joining, "--store", str(small_store_path), cwd=tmp_path) as joined:
            arriving = psutil.Process(joined.pid)
            wait_until(lambda: bool(arriving.net_connections()), "the worker to connect", process, joined)
            arriving.suspend()
            server.kill()
            wait_until(lambda: bool(resumes(path)), "the servers to restart", process)
            arriving.resume()
            before = len(updates(path))
            wait_until(lambda: len(updating(path, before)) == 2, "updates of both workers", process, joined)
            (local,) = workers_of(process)
            local.terminate()
            wait_until(lambda: "left" in stop_reasons(path), "the local worker to leave", process)
            alone = len(updates(path))
            wait_until(lambda: len(updates(path)) > alone + 20, "updates of the joined worker", process, joined)
            process.send_signal(signal.SIGINT)
            ended, done = finished(joined), finished(process)
    assert (ended.code, done.code, refused.code) == (130, 130, 2), ended.err + done.err
    assert "is not the server's" in refused.err.splitlines()[-1]
    assert len(updating(path, alone + 2)) == 1
    audited(path)


def test_checkpoint_that_cannot_be_written_and_workers_that_cannot_start(
    small_store_path: Path, tmp_path: Path
) -> None:
    """The run goes on without checkpoints, ends when it has no worker, and can be evaluated."""
    path, store, away = tmp_path / "runs" / "r", tmp_path / "store", tmp_path / "away"
    shutil.copytree(small_store_path, store)
    more = (*ENDLESS, "--checkpoint-every", "5", "--restarts.failures", "1")
    with started(PS, *small_run(store, "r", *more), cwd=tmp_path) as process:
        wait_until(lambda: bool(events(path, CheckpointSaved)), "a checkpoint", process)
        (server,) = servers_of(process)
        server.suspend()
        wait_until(lambda: server.status() == psutil.STATUS_STOPPED, "the server to be suspended", process)
        shutil.rmtree(path / "checkpoints")
        (path / "checkpoints").write_text("a file where the folder was")
        server.resume()
        wait_until(lambda: len(events(path, CheckpointFailed)) > 1, "two checkpoints that fail", process)
        failed = len(updates(path))
        wait_until(lambda: len(updates(path)) > failed + 5, "more updates", process)
        with pytest.raises(PsysError, match="the run is still going on"):
            train(read_settings(["--resume", str(path)]))
        store.rename(away)
        for worker in workers_of(process):
            worker.kill()
        done = finished(process)
    assert done.code == 2
    assert "cannot write a checkpoint" in done.err
    assert "was killed by SIGKILL" in done.err
    assert done.err.count("it died too often in a row and is not restarted") == 2
    assert "no worker is left" in done.err.splitlines()[-1]
    audited(path)
    away.rename(store)
    evaluated = run("-m", "psys", "evaluate", str(path), cwd=tmp_path)
    assert evaluated.code == 0, evaluated.err
    assert RunDirectory(path).result()["last"]["version"] == updates(path)[-1].version
    assert (path / "best.safetensors").exists()


def test_children_save_and_end_when_their_supervisor_is_killed(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    with started(PS, *small_run(small_store_path, "r", *ENDLESS), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) >= 5, "five updates", process)
        children = family(process)[1:]
        process.kill()
        wait_until(lambda: not any(child.is_running() for child in children), "all children to end")
    assert audited(path).applied == len(updates(path))
    assert events(path, CheckpointSaved)[-1].version == updates(path)[-1].version
