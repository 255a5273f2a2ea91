"""A server that joins a run by its address, leaves, and is replaced."""

import contextlib
import signal
from pathlib import Path

from psys.ps.events import CheckpointSaved, RunStarted
from tests.support.processes import (
    PS,
    audited,
    events,
    finished,
    join_address,
    resumes,
    run,
    servers_of,
    small_run,
    started,
    updates,
    wait_until,
)


def test_remote_server_joins_leaves_and_is_replaced(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--epochs", "5000", "--servers", "3", "--remote-servers", "1", "--checkpoint-every", "5")
    small = small_run(small_store_path, "r", *more, "--leave-timeout", "0.5")
    with started(PS, *small, cwd=tmp_path) as process:
        joining = (PS, "--role", "server", "--join", join_address(process))
        with started(*joining, cwd=tmp_path) as first:
            wait_until(lambda: bool(events(path, CheckpointSaved)), "a checkpoint of all servers", process, first)
            first.send_signal(signal.SIGTERM)
            left = finished(first)
        with started(*joining, cwd=tmp_path) as second:
            wait_until(lambda: bool(resumes(path)), "the run to continue", process)
            reached = len(updates(path))
            wait_until(lambda: len(updates(path)) > reached + 5, "updates with the second server", process, second)
            process.send_signal(signal.SIGINT)
            done, ended = finished(process), finished(second)
    assert (left.code, done.code, ended.code) == (130, 130, 130), left.err + done.err + ended.err
    audited(path)


def test_remote_server_finds_a_run_again_whose_servers_restarted(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--epochs", "5000", "--servers", "2", "--remote-servers", "1", "--checkpoint-every", "5")
    with started(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path) as process:
        joining = (PS, "--role", "server", "--join", join_address(process))
        with started(*joining, cwd=tmp_path) as remote:
            wait_until(lambda: bool(events(path, CheckpointSaved)), "a checkpoint of all servers", process, remote)
            (server,) = servers_of(process)
            server.kill()
            wait_until(lambda: bool(resumes(path)), "the run to continue", process)
            reached = len(updates(path))
            wait_until(lambda: len(updates(path)) > reached + 5, "updates with the same server", process, remote)
            process.send_signal(signal.SIGINT)
            done, ended = finished(process), finished(remote)
    assert (done.code, ended.code) == (130, 130), done.err + ended.err
    assert "this server looks for the run for 120 s" in ended.err


def test_missing_remote_server_is_named(small_store_path: Path, tmp_path: Path) -> None:
    more = ("--servers", "2", "--remote-servers", "1", "--join-timeout", "1")
    done = run(PS, *small_run(small_store_path, "r", *more), cwd=tmp_path)
    assert done.code == 2
    (error,) = [line for line in done.err.splitlines() if line.startswith("psys: error: ")]
    assert "--role server --join" in error


def test_run_whose_processes_are_all_told_to_end_is_saved(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--epochs", "5000", "--servers", "2", "--remote-servers", "1", "--checkpoint-every", "1000000")
    small = small_run(small_store_path, "r", *more, "--remote-workers", "1", workers=1)
    with started(PS, *small, cwd=tmp_path) as process:
        address = ("--join", join_address(process))
        with contextlib.ExitStack() as stack:
            remote = [
                stack.enter_context(started(PS, "--role", role, *address, cwd=tmp_path))
                for role in ("server", "worker")
            ]
            wait_until(lambda: len(updates(path)) > 5, "updates", process, *remote)
            for each in (*remote, process):  # the remote server first: it must serve until server 0 has saved
                each.send_signal(signal.SIGTERM)
            ended = [finished(each) for each in (process, *remote)]
    assert [each.code for each in ended] == [130] * 3, "".join(each.err for each in ended)
    assert "stopped and saved" in ended[0].err
    assert [saved.version for saved in events(path, CheckpointSaved)] == [len(updates(path))]
    audited(path)


def test_run_that_waits_for_its_servers_can_be_stopped(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--servers", "2", "--remote-servers", "1", "--remote-workers", "1")
    with started(PS, *small_run(small_store_path, "r", *more, workers=1), cwd=tmp_path) as process:
        wait_until(lambda: bool(events(path, RunStarted)), "server 0 to wait", process)
        process.send_signal(signal.SIGTERM)
        done = finished(process)
    assert done.code == 130, done.err
    assert "1 of 1 workers are started elsewhere, each with --role worker --join " in done.err
    assert "stopped, nothing was trained" in done.err
    assert audited(path).applied == 0
