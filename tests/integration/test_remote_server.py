"""A server that joins a run by its address, leaves, and is replaced."""

import signal
import subprocess
from pathlib import Path

from tests.support.processes import PS, events, finished, run, servers_of, small_run, started, updates, wait_until


def address_to_join(process: "subprocess.Popen[str]") -> str:
    """HOST:PORT of a started run, which is the last word of a line that it shows."""
    assert process.stderr is not None
    for line in process.stderr:
        if "--role server --join" in line:
            return line.split()[-1]
    raise AssertionError("the run ended without saying how servers join it")


def has_ended(process: "subprocess.Popen[str]") -> bool:
    return process.poll() is not None


def test_remote_server_joins_leaves_and_is_replaced(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--epochs", "5000", "--servers", "3", "--remote-servers", "1", "--checkpoint-every", "5")
    with started(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path) as process:
        joining = (PS, "--role", "server", "--join", address_to_join(process))
        with started(*joining, cwd=tmp_path) as first:
            wait_until(lambda: has_ended(first) or bool(events(path, "checkpoint")), "a checkpoint of all servers")
            first.send_signal(signal.SIGTERM)
            left = finished(first)
        with started(*joining, cwd=tmp_path) as second:
            wait_until(lambda: has_ended(process) or bool(events(path, "resume")), "the run to continue")
            reached = len(updates(path))
            wait_until(lambda: has_ended(process) or len(updates(path)) > reached + 5, "updates with the second server")
            process.send_signal(signal.SIGINT)
            done, ended = finished(process), finished(second)
    assert (left.code, done.code, ended.code) == (0, 130, 0), left.err + done.err + ended.err
    audit = run("-m", "psys.cli", "audit", str(path), cwd=tmp_path)
    assert audit.code == 0, audit.err


def test_remote_server_finds_a_run_again_whose_servers_restarted(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--epochs", "5000", "--servers", "2", "--remote-servers", "1", "--checkpoint-every", "5")
    with started(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path) as process:
        joining = (PS, "--role", "server", "--join", address_to_join(process))
        with started(*joining, cwd=tmp_path) as remote:
            wait_until(lambda: has_ended(remote) or bool(events(path, "checkpoint")), "a checkpoint of all servers")
            (server,) = servers_of(process)
            server.kill()
            wait_until(lambda: has_ended(process) or bool(events(path, "resume")), "the run to continue")
            reached = len(updates(path))
            wait_until(
                lambda: has_ended(process) or len(updates(path)) > reached + 5, "updates with the same remote server"
            )
            process.send_signal(signal.SIGINT)
            done, ended = finished(process), finished(remote)
    assert (done.code, ended.code) == (130, 0), done.err + ended.err
    assert "this server looks for the run for 120 s" in ended.err


def test_missing_remote_server_is_named(small_store_path: Path, tmp_path: Path) -> None:
    more = ("--servers", "2", "--remote-servers", "1", "--join-timeout", "1")
    done = run(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path)
    assert done.code == 2
    (error,) = [line for line in done.err.splitlines() if line.startswith("psys: error: ")]
    assert "--role server --join" in error
