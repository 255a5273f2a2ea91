"""Runs over several hosts, emulated on this one: joining, networks that break and heal, and reachable ports."""

import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.hosts import Host, Lan, command, hosts, why_not
from tests.support.processes import PROGRAMS, PS, events, finished, run, small_run, started, updates, wait_until

pytestmark = pytest.mark.timeout(150)

PORT = "4000"  # the hosts are ours alone
TIMEOUT = 2.0  # heartbeats, where the network breaks


@pytest.fixture
def lan() -> Iterator[Lan]:
    if reason := why_not():
        pytest.skip(reason)
    with hosts("a", "b") as lan:
        yield lan


def serving(host: Host, store: Path, *more: str) -> tuple[str, ...]:
    """A run with one worker on `host`, open to the others."""
    address = ("--listen", host.address, "--port", PORT, "--heartbeat-timeout", str(TIMEOUT))
    lean = ("--threads", "1", "--snapshot-epochs", "1000")
    return host.python(PS, *small_run(store, "r", *address, *lean, *more, workers=1))


def joining(host: Host, store: Path) -> tuple[str, ...]:
    return host.python(PS, "--role", "worker", "--join", f"a:{PORT}", "--store", str(store), "--threads", "1")


def token(path: Path) -> dict[str, str]:
    return {"PSYS_TOKEN": (path / "token").read_text().strip()}


def seconds_of(path: Path, worker: str) -> list[float]:
    """When, in seconds of the run, an update took in a gradient of that worker."""
    return [update["seconds"] for update in updates(path) if worker in update["workers"]]


def check_books(path: Path, cwd: Path, unfinished: int | None = None) -> None:
    """Exactly once, whatever happened; with all batches, if the run was not stopped."""
    done = run("-m", "psys.cli", "audit", str(path), cwd=cwd)
    assert done.code == 0, done.out + done.err
    (end,) = events(path, "end")
    assert end["lost"] == 0
    assert unfinished is None or end["unfinished"] == unfinished


def test_a_worker_on_another_host(lan: Lan, small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    a, b = lan
    with started(*serving(a, small_store_path, "--epochs", "25"), cwd=tmp_path) as process:
        wait_until(lambda: (path / "token").exists(), "the token")
        with started(*joining(b, small_store_path), cwd=tmp_path, env=token(path)) as newcomer:
            joined, done = finished(newcomer), finished(process)
    assert (joined.code, done.code) == (0, 0), joined.err + done.err
    assert {event["worker"] for event in events(path, "join")} == {"worker0", "worker1"}
    assert seconds_of(path, "worker0")
    assert seconds_of(path, "worker1")
    check_books(path, tmp_path, unfinished=0)


@pytest.mark.parametrize(("mode", "bound"), [("async", TIMEOUT), ("sync", TIMEOUT + 2)])
def test_a_partition_that_heals(lan: Lan, small_store_path: Path, tmp_path: Path, mode: str, bound: float) -> None:
    """Who is cut off is waited for as the mode has it and no longer, and works again afterwards."""
    path = tmp_path / "runs" / "r"
    a, b = lan
    with started(*serving(a, small_store_path, "--epochs", "5000", "--mode", mode), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) > 5, "updates by the worker at the server")
        with started(*joining(b, small_store_path), cwd=tmp_path, env=token(path)) as newcomer:
            wait_until(lambda: len(seconds_of(path, "worker1")) > 5, "updates by the one elsewhere")
            before = updates(path)[-1]["seconds"]
            lan.partition(b)
            wait_until(lambda: bool(events(path, "returned")), "its lease being returned")
            (given_up,), (returned,) = events(path, "leave"), events(path, "returned")
            wait_until(lambda: updates(path)[-1]["seconds"] > given_up["seconds"] + 1, "updates without it")
            cut_off = updates(path)[-1]["seconds"]
            lan.heal(b)
            wait_until(lambda: seconds_of(path, "worker1")[-1] > cut_off, "its return")
            command(process).send_signal(signal.SIGTERM)
            joined, done = finished(newcomer), finished(process)
    assert (joined.code, done.code) == (0, 130), joined.err + done.err
    assert (given_up["worker"], given_up["reason"]) == ("worker1", "silent")
    assert [worker for _, _, worker, *_ in returned["leases"]] == ["worker1"]
    assert not [at for at in seconds_of(path, "worker1") if given_up["seconds"] < at <= cut_off]
    of_the_other = [at for at in seconds_of(path, "worker0") if at >= before]
    assert max(later - earlier for earlier, later in pairwise(of_the_other)) < bound
    check_books(path, tmp_path)


def test_a_host_that_never_returns(lan: Lan, small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    a, b = lan
    more = ("--epochs", "5000", "--patience", "1")
    with started(*serving(a, small_store_path, *more), cwd=tmp_path) as process:
        wait_until(lambda: len(updates(path)) > 0, "updates by the worker at the server")
        with started(*joining(b, small_store_path), cwd=tmp_path, env=token(path)) as newcomer:
            wait_until(lambda: len(seconds_of(path, "worker1")) > 0, "updates by the one elsewhere")
            lan.partition(b)
            joined = finished(newcomer)
            wait_until(lambda: bool(events(path, "leave")), "its being given up")
            command(process).send_signal(signal.SIGTERM)
            done = finished(process)
    assert (joined.code, done.code) == (2, 130), joined.err + done.err
    assert joined.err.splitlines()[-1].startswith(f"psys: error: lost the servers of the run at a:{PORT}: ")
    assert {event["worker"]: event["reason"] for event in events(path, "leave")} == {
        "worker0": "left",
        "worker1": "silent",
    }
    check_books(path, tmp_path)


@pytest.mark.parametrize("opened", [False, True])
def test_what_others_can_connect_to(lan: Lan, small_store_path: Path, tmp_path: Path, opened: bool) -> None:
    """Nothing, unless the run was opened to them."""
    path = tmp_path / "runs" / "r"
    a, b = lan
    default = a.python(PS, *small_run(small_store_path, "r", "--epochs", "5000", workers=1))
    arguments = serving(a, small_store_path, "--epochs", "5000") if opened else default
    with started(*arguments, cwd=tmp_path):
        wait_until(lambda: len(updates(path)) >= 3, "three updates")
        listening = json.loads(run(*a.python(str(PROGRAMS / "listening_ports.py")), cwd=tmp_path).out)
        ports = [port for _, port in listening]
        probe = b.python(str(PROGRAMS / "reachable_ports.py"), "a", json.dumps(ports))
        reachable = json.loads(run(*probe, cwd=tmp_path).out)
    assert len(ports) >= 3  # of the rendezvous server, and of RPC of server and worker
    assert reachable == (ports if opened else [])


def test_a_joiner_without_the_token(lan: Lan, small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    a, b = lan
    with started(*serving(a, small_store_path, "--epochs", "5000"), cwd=tmp_path) as process:
        wait_until(lambda: (path / "token").exists(), "the token")
        guessed = {"PSYS_TOKEN": "guessed"}
        with (
            started(*joining(b, small_store_path), cwd=tmp_path) as without,
            started(*joining(b, small_store_path), cwd=tmp_path, env=guessed) as wrong,
        ):
            refused = [finished(without), finished(wrong)]
        wait_until(lambda: len(events(path, "visitor")) == 2, "their being noted")
        command(process).send_signal(signal.SIGTERM)
        assert finished(process).code == 130
    for done in refused:
        assert done.code == 2, done
        (line,) = done.err.splitlines()
        assert line.startswith("psys: error: ")
        assert "token" in line
    for visitor in events(path, "visitor"):
        assert visitor["address"].startswith(f"{b.address}:")
        assert "token" in visitor["refused"]
    assert {join["worker"] for join in events(path, "join")} == {"worker0"}
