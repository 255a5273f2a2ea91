"""Whatever dies, on purpose and counted: workers, servers, whole runs. Nothing is lost, nothing counts twice."""

import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from psys.errors import PsysError
from psys.training import TrainingConfig, read_settings
from psys.training.launch import launch
from tests.support.processes import (
    PS,
    Done,
    events,
    family,
    finished,
    join_address,
    reserved_port,
    run,
    servers_of,
    small_run,
    started,
    updates,
    wait_until,
    workers_of,
)


def audited(path: Path) -> str:
    """The account that `psys audit` makes up from the run's events, which agrees with the run's own."""
    done = run("-m", "psys.cli", "audit", str(path), cwd=path)
    assert done.code == 0, done.err
    assert "what the run itself said" in done.out
    return done.out


SYNC = ("--mode", "sync", "--epochs", "5000")
VERSION = 27  # of the snapshot that synchronous runs are compared by, after six epochs


def snapshot(path: Path) -> Path:
    return path / "snapshots" / f"{VERSION:08d}.safetensors"


def same_model(one: Path, other: Path) -> bool:
    """Bit for bit."""
    first, second = (load_file(snapshot(path)) for path in (one, other))
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def stopped_after_snapshot(process: "subprocess.Popen[str]", path: Path) -> Done:
    """Let a run come to where it is compared, and no further: to evaluate and export each would take longer."""
    wait_until(lambda: process.poll() is not None or snapshot(path).exists(), "the snapshot to compare by")
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.code == 130, done.err
    audited(path)
    return done


def resumed(path: Path, *more: str) -> TrainingConfig:
    return read_settings(["--resume", str(path), *more], PS, default_file=path)


@pytest.fixture(scope="module")
def unbroken(small_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synchronous run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    path = folder / "runs" / "r"
    with started(PS, *small_run(small_store_path, "r", *SYNC), cwd=folder) as process:
        stopped_after_snapshot(process, path)
    return path


@pytest.mark.parametrize("more", [("sync",), ("async", "--servers", "2", "--prefetch", "1")])
def test_a_killed_worker_is_replaced(small_store_path: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    path = tmp_path / "runs" / "r"
    with started(PS, *small_run(small_store_path, "r", "--epochs", "5000", "--mode", *more), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) >= 5, "five updates")
        workers_of(process)[0].kill()
        wait_until(lambda: any("worker2" in u["workers"] for u in updates(path)), "an update by its replacement")
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    assert "was killed by SIGKILL" in done.err
    assert Counter(event["reason"] for event in events(path, "leave")) == {"broken": 1, "left": 2}
    audited(path)


@pytest.mark.parametrize(("servers", "victim"), [(1, 0), (2, 1)])
def test_a_killed_server_comes_back_and_the_run_goes_on_as_if_nothing_had_happened(
    small_store_path: Path, tmp_path: Path, unbroken: Path, servers: int, victim: int
) -> None:
    path, plan = tmp_path / "runs" / "r", tmp_path / "plan.yaml"
    plan.write_text("faults: [{worker: 0, step: 10, kind: slow, seconds: 3}]")  # its round is open for as long
    durable = (*SYNC, "--servers", str(servers), "--checkpoint-every", "7", "--faults", str(plan))
    with started(PS, *small_run(small_store_path, "r", *durable), cwd=tmp_path) as process:
        wait_until(lambda: bool(events(path, "checkpoint")) and len(updates(path)) == 10, "updates after a checkpoint")
        servers_of(process)[victim].kill()
        done = stopped_after_snapshot(process, path)
    assert f"server {victim} was killed by SIGKILL" in done.err
    assert len(events(path, "resume")) == 1
    assert same_model(path, unbroken)


def test_a_run_that_was_stopped_is_resumed_on_another_number_of_servers(
    small_store_path: Path, tmp_path: Path, unbroken: Path
) -> None:
    path = tmp_path / "runs" / "r"
    with started(PS, *small_run(small_store_path, "r", *SYNC), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) > 3, "some updates")
        os.killpg(process.pid, signal.SIGTERM)  # as torchrun and `timeout` do: to the whole group
        assert finished(process).code == 130
    assert events(path, "checkpoint")[-1]["version"] == updates(path)[-1]["version"]
    # It may have come further than the snapshot before it heard: then it is resumed beyond.
    with started(PS, "--resume", str(path), "--servers", "2", cwd=tmp_path) as process:
        wait_until(lambda: bool(events(path, "resume")), "its return")
        stopped_after_snapshot(process, path)
    assert same_model(path, unbroken)


def test_a_run_that_was_killed_altogether_is_resumed_with_other_workers(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    durable = ("--epochs", "8", "--checkpoint-every", "5")
    with started(PS, *small_run(small_store_path, "r", *durable), cwd=tmp_path) as process:
        wait_until(lambda: bool(events(path, "checkpoint")), "a checkpoint")
        for member in family(process):
            member.kill()
    (torn,) = events(path, "checkpoint")[-1:]
    state = path / "checkpoints" / f"{torn['version']:08d}" / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    with pytest.raises(PsysError, match="is damaged"):
        launch(resumed(path))
    state.write_bytes(whole)
    with pytest.raises(PsysError, match="another optimizer"):
        launch(resumed(path, "--optimizer.momentum", "0.5"))
    done = run(PS, "--resume", str(path), "--workers", "3", cwd=tmp_path)
    assert done.code == 0, done.err
    audited(path)
    with pytest.raises(PsysError, match="nothing to resume"):
        launch(resumed(path))


@pytest.mark.parametrize("more", [(), ("--wire", "topk", "--prefetch", "1")], ids=" ".join)
def test_faults_happen_where_the_plan_says_and_cost_nothing_but_time(
    small_store_path: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    path, plan = tmp_path / "runs" / "r", tmp_path / "plan.yaml"
    plan.write_text(
        """
faults:
  - {worker: 0, step: 2, kind: nan}
  - {worker: 1, step: 3, kind: slow, seconds: 0.2}
  - {worker: 0, step: 4, kind: drop_reply}
  - {worker: 1, step: 5, kind: hang, seconds: 2.5}
  - {worker: 0, step: 6, kind: kill}
"""
    )
    more = ("--epochs", "12", "--faults", str(plan), "--heartbeat-timeout", "1", *more)
    done = run(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path)
    assert done.code == 0, done.err
    happened = [(event["worker"], event["step"], event["kind"]) for event in events(path, "fault")]
    assert sorted(happened) == [
        ("worker0", 2, "nan"),
        ("worker0", 4, "drop_reply"),
        ("worker0", 6, "kill"),
        ("worker1", 3, "slow"),
        ("worker1", 5, "hang"),
    ]
    receipts = Counter(event["receipt"] for event in events(path, "refused"))
    assert (receipts["damaged"], receipts["duplicate"] >= 1) == (1, True)
    reasons = Counter(event["reason"] for event in events(path, "leave"))
    assert reasons["broken"] == 1
    assert reasons["silent"] >= 1
    audited(path)


def test_a_worker_told_to_leave_waits_for_nobody(small_store_path: Path, tmp_path: Path) -> None:
    """Not for its own call either, which is answered when the other worker, that hangs, has done its part."""
    path = tmp_path / "runs" / "r"
    more = (*SYNC, "--prefetch", "1", "--heartbeat-timeout", "60")
    with started(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) > 3, "updates")
        hanging, leaving = workers_of(process)
        hanging.suspend()
        looks: list[float] = []

        def idle() -> bool:
            looks.append(leaving.cpu_times().user)
            return len(looks) > 25 and looks[-1] == looks[-25]

        wait_until(idle, "its being out of work")
        log = path / "logs" / f"{leaving.name().removeprefix('psys-')}.log"
        leaving.terminate()
        leaving.wait(timeout=8)  # after 10 it would have been killed
        wait_until(lambda: bool(events(path, "leave")), "its leave being noted")
        assert [event["reason"] for event in events(path, "leave")] == ["left"]
        assert "Traceback" not in log.read_text()


def joining(address: str) -> tuple[str, ...]:
    return ("--role", "worker", "--join", address, "--threads", "1")


def test_a_server_that_comes_back_while_a_worker_gets_ready(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--epochs", "5000", "--checkpoint-every", "1")
    with started(PS, *small_run(small_store_path, "r", *more, workers=1), cwd=tmp_path) as process:
        address = join_address(process)
        wait_until(lambda: bool(updates(path)), "the first update")
        (server,) = servers_of(process)
        with started(PS, *joining(address), cwd=tmp_path) as newcomer:
            arriving = psutil.Process(newcomer.pid)
            wait_until(lambda: bool(arriving.net_connections()), "its coming")
            arriving.suspend()
            server.kill()
            wait_until(lambda: bool(servers_of(process)) and servers_of(process) != [server], "another server")
            arriving.resume()
            before = len(updates(path))
            wait_until(lambda: len({w for u in updates(path)[before:] for w in u["workers"]}) == 2, "both at work")
            process.send_signal(signal.SIGINT)
            joined, done = finished(newcomer), finished(process)
    assert (joined.code, done.code) == (0, 130), joined.err + done.err
    audited(path)


def test_a_worker_is_told_when_another_run_has_taken_the_place_of_its_own(
    small_store_path: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(reserved_port())
        more = ("--epochs", "5000", "--port", str(port))
        path = tmp_path / "runs" / "first"
        with started(PS, *small_run(small_store_path, "first", *more, workers=1), cwd=tmp_path):
            wait_until(lambda: bool(updates(path)), "the first update")
            newcomer = stack.enter_context(started(PS, *joining(f"127.0.0.1:{port}"), cwd=tmp_path))
            wait_until(lambda: any(update["workers"] != ["worker0"] for update in updates(path)), "its first gradient")
        second = small_run(small_store_path, "second", *more, "--model", "mlp16", workers=1)
        stack.enter_context(started(PS, *second, cwd=tmp_path))
        joined = finished(newcomer)
    assert joined.code == 2, joined.err
    assert joined.err.splitlines()[-1].startswith("psys: error: the run came back with other settings")


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on(
    small_store_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--epochs", "5000", "--checkpoint-every", "20")
    with started(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path) as process:
        wait_until(lambda: bool(updates(path)), "the first update")
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
        (path / "checkpoints").write_text("in the way")
        wait_until(lambda: len(events(path, "checkpoint")) > 1, "two attempts")
        with pytest.raises(PsysError, match="the run is still going on"):
            launch(resumed(path))
        process.send_signal(signal.SIGINT)
        done = finished(process)
    assert done.code == 130, done.err
    assert "cannot write a checkpoint" in done.err
    assert all("failed" in event for event in events(path, "checkpoint"))
    audited(path)


def test_a_storm(small_store_path: Path, tmp_path: Path, full: bool) -> None:
    """Workers are killed at random, one a second or so: 3 of them, or 100 with --full."""
    path, kills, chance = tmp_path / "runs" / "r", 100 if full else 3, random.Random(1)
    segments = set(Path("/dev/shm").iterdir())
    with started(PS, *small_run(small_store_path, "r", "--epochs", "5000", workers=3), cwd=tmp_path) as process:
        wait_until(lambda: len({w for u in updates(path) for w in u["workers"]}) == 3, "three workers at work")
        members = family(process)
        for kill in range(kills):
            done = len(updates(path)) + chance.randrange(40)
            wait_until(lambda done=done: len(updates(path)) > done, "updates between two kills")
            chance.choice(workers_of(process)).kill()
            wait_until(lambda kill=kill: len(events(path, "join")) > 3 + kill, "its replacement")
        process.send_signal(signal.SIGINT)
        ended = finished(process)
        assert not [member for member in members if member.is_running()]
    assert ended.code == 130, ended.err
    assert ended.err.count("was killed by SIGKILL") == kills
    applied = Counter(batch for update in updates(path) for batch in update["batches"])
    assert set(applied.values()) == {1}
    audited(path)
    assert set(Path("/dev/shm").iterdir()) <= segments
    assert not list(path.rglob("*.tmp"))


def test_servers_killed_at_random_instants(small_store_path: Path, tmp_path: Path, unbroken: Path, full: bool) -> None:
    """3 times in one run, or 50 with --full; the synchronous run still comes bit for bit to where it should."""
    path, kills, chance = tmp_path / "runs" / "r", 50 if full else 3, random.Random(2)
    with started(PS, *small_run(small_store_path, "r", *SYNC, "--checkpoint-every", "1"), cwd=tmp_path) as process:
        for kill in range(kills):
            reached = len(updates(path)) + chance.randrange(30)
            wait_until(
                lambda reached=reached: len(updates(path)) >= reached and bool(servers_of(process)),
                "an instant to kill at",
            )
            servers_of(process)[0].kill()
            wait_until(lambda kill=kill: len(events(path, "resume")) > kill, "its return")
        stopped_after_snapshot(process, path)
    assert same_model(path, unbroken)
