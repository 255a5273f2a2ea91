"""Runs over several hosts, emulated on this one: joining, networks that break and heal, and reachable ports."""

import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from psys.ps.events import JoinRefused, LeasesReturned, WorkerJoined, WorkerLeft
from tests.support.hosts import Host, Lan, command, hosts, why_not
from tests.support.processes import (
    PROGRAMS,
    PS,
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

pytestmark = pytest.mark.timeout(150)

PORT = "4000"  # no other program runs on these hosts
TIMEOUT = 2.0  # heartbeats, where the network breaks


@pytest.fixture
def lan() -> Iterator[Lan]:
    if reason := why_not():
        pytest.skip(reason)
    with hosts("a", "b") as lan:
        yield lan


def serving(host: Host, store: Path, *more: str) -> tuple[str, ...]:
    """A run with one worker on `host`, open to the other hosts."""
    address = ("--listen", host.address, "--port", PORT, "--heartbeat-timeout", str(TIMEOUT))
    lean = ("--epochs", "5000", "--snapshot-epochs", "1000")
    return host.python(PS, *small_run(store, "r", *address, *lean, *more, workers=1))


def joining(host: Host, store: Path) -> tuple[str, ...]:
    return host.python(PS, "--role", "worker", "--join", f"a:{PORT}", "--store", str(store), "--threads", "1")


def token(path: Path) -> dict[str, str]:
    return {"PSYS_TOKEN": (path / "token").read_text().strip()}


def seconds_of(path: Path, worker: str) -> list[float]:
    """The training seconds of the updates that contain a gradient of that worker."""
    return [update.seconds for update in updates(path) if worker in update.workers]


def test_workers_with_the_token_join_from_another_host(lan: Lan, small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    a, b = lan
    with started(*serving(a, small_store_path), cwd=tmp_path) as process:
        wait_until(lambda: "worker0" in updating(path), "updates of the worker on the server's host", process)
        with (
            started(*joining(b, small_store_path), cwd=tmp_path, env=token(path)) as newcomer,
            started(*joining(b, small_store_path), cwd=tmp_path) as without,
            started(*joining(b, small_store_path), cwd=tmp_path, env={"PSYS_TOKEN": "guessed"}) as wrong,
        ):
            refused = [finished(without), finished(wrong)]
            wait_until(lambda: len(events(path, JoinRefused)) == 2, "the refusals to be logged", process)
            refusals = events(path, JoinRefused)
            wait_until(lambda: "worker1" in updating(path), "updates of the other worker", process, newcomer)
            listening = json.loads(run(*a.python(str(PROGRAMS / "listening_ports.py")), cwd=tmp_path).out)
            ports = [port for _, port in listening]
            probe = b.python(str(PROGRAMS / "reachable_ports.py"), "a", json.dumps(ports))
            reachable = json.loads(run(*probe, cwd=tmp_path).out)
            command(process).send_signal(signal.SIGTERM)
            joined, done = finished(newcomer), finished(process)
    assert (joined.code, done.code) == (130, 130), joined.err + done.err
    assert {join.worker for join in events(path, WorkerJoined)} == {"worker0", "worker1"}
    assert len(ports) >= 3  # of the rendezvous server, and of RPC of server and worker
    assert reachable == ports
    for ended in refused:
        assert ended.code == 2, ended
        (line,) = ended.err.splitlines()
        assert line.startswith("psys: error: ")
        assert "token" in line
    for refusal in refusals:
        assert refusal.address.startswith(f"{b.address}:")
        assert "token" in refusal.reason
    audited(path)


@pytest.mark.parametrize(("mode", "bound"), [("async", TIMEOUT), ("sync", TIMEOUT + 2)])
def test_worker_cut_off_by_a_partition_returns(
    lan: Lan, small_store_path: Path, tmp_path: Path, mode: str, bound: float
) -> None:
    """The other worker waits for it at most `bound` seconds."""
    path = tmp_path / "runs" / "r"
    a, b = lan
    with started(*serving(a, small_store_path, "--mode", mode), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) > 5, "updates of the worker on the server's host", process)
        with started(*joining(b, small_store_path), cwd=tmp_path, env=token(path)) as newcomer:
            wait_until(lambda: len(seconds_of(path, "worker1")) > 5, "updates of the other worker", process, newcomer)
            before = updates(path)[-1].seconds
            lan.partition(b)
            wait_until(lambda: bool(events(path, LeasesReturned)), "its lease to be returned", process)
            (left,), (returned,) = events(path, WorkerLeft), events(path, LeasesReturned)
            wait_until(lambda: updates(path)[-1].seconds > left.seconds + 1, "updates without it", process)
            healed = updates(path)[-1].seconds
            lan.heal(b)
            wait_until(lambda: seconds_of(path, "worker1")[-1] > healed, "its next update", process, newcomer)
            command(process).send_signal(signal.SIGTERM)
            joined, done = finished(newcomer), finished(process)
    assert (joined.code, done.code) == (130, 130), joined.err + done.err
    assert (left.worker, left.reason) == ("worker1", "silent")
    assert [lease.worker for lease in returned.leases] == ["worker1"]
    assert not [at for at in seconds_of(path, "worker1") if left.seconds < at <= healed]
    of_the_other = [at for at in seconds_of(path, "worker0") if at >= before]
    assert max(later - earlier for earlier, later in pairwise(of_the_other)) < bound
    audited(path)


def test_worker_that_stays_cut_off_ends_with_an_error(lan: Lan, small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    a, b = lan
    with started(*serving(a, small_store_path, "--patience", "1"), cwd=tmp_path) as process:
        wait_until(lambda: bool(updates(path)), "updates of the worker on the server's host", process)
        with started(*joining(b, small_store_path), cwd=tmp_path, env=token(path)) as newcomer:
            wait_until(lambda: "worker1" in updating(path), "updates of the other worker", process, newcomer)
            lan.partition(b)
            joined = finished(newcomer)
            wait_until(lambda: bool(events(path, WorkerLeft)), "the worker to be taken for dead", process)
            command(process).send_signal(signal.SIGTERM)
            done = finished(process)
    assert (joined.code, done.code) == (2, 130), joined.err + done.err
    assert joined.err.splitlines()[-1].startswith(f"psys: error: lost the servers of the run at a:{PORT}: ")
    assert {left.worker: left.reason for left in events(path, WorkerLeft)} == {"worker0": "left", "worker1": "silent"}
    audited(path)
