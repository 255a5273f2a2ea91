"""The same command given again by a person, a loop or torchrun, and runs that are extended, changed or moved."""

import contextlib
import subprocess
from pathlib import Path

import psutil
import pytest

from psys.ps.events import JoinRefused, SettingsChanged, SnapshotEvaluated
from psys.run.directory import RunDirectory
from tests.support.processes import (
    PS,
    audited,
    events,
    family,
    finished,
    reserved_port,
    resumes,
    run,
    small_run,
    started,
    updates,
    wait_until,
)
from tests.support.reference import computed_again, same_bits, snapshot

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3")
KILLS = 3
VERSION = 27
"""A version with a snapshot, which two workers make at the end of epoch 6."""


def rank(process: "subprocess.Popen[str]", number: int) -> psutil.Process:
    ranks = [each for each in family(process) if each.environ().get("RANK") == str(number)]
    return ranks[0]


def kill_all(process: "subprocess.Popen[str]") -> None:
    for each in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def test_ranks_that_torchrun_restarts_continue_their_run(small_store_path: Path, tmp_path: Path) -> None:
    unnamed = [each for each in small_run(small_store_path, "r", "--mode", "sync") if each not in ("--name", "r")]
    more = ("--epochs", "8", "--checkpoint-every", "1", "--snapshot-epochs", "2")
    with started(*TORCHRUN, "--max-restarts", "1", PS, *unnamed, *more, cwd=tmp_path) as process:
        wait_until(lambda: bool(list((tmp_path / "runs").glob("*/checkpoints/*"))), "a checkpoint", process)
        rank(process, 1).kill()
        done = finished(process)
    assert done.code == 0, done.err
    (path,) = (tmp_path / "runs").iterdir()
    assert len(resumes(path)) == 1
    assert audited(path).unfinished == 0
    assert RunDirectory(path).complete


def test_ranks_of_two_torchruns_continue_their_run(small_store_path: Path, tmp_path: Path) -> None:
    """A rank of the second torchrun is killed: the first one starts its ranks again without counting it."""
    with reserved_port() as port:
        agents = ("--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "2", "--rdzv-backend", "c10d")
        where = ("--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost")
        more = ("--mode", "sync", "--epochs", "60", "--checkpoint-every", "1")
        unnamed = [each for each in small_run(small_store_path, "r", *more, workers=3) if each not in ("--name", "r")]
        command = ("-m", "torch.distributed.run", *agents, *where, PS, *unnamed)
        with started(*command, cwd=tmp_path) as first, started(*command, cwd=tmp_path) as second:
            wait_until(lambda: bool(list((tmp_path / "runs").glob("*/checkpoints/*"))), "a checkpoint", first, second)
            other = second if any(each.environ().get("RANK") == "3" for each in family(second)) else first
            rank(other, 3).kill()
            done = finished(first), finished(second)
    assert [each.code for each in done] == [0, 0], done
    (path,) = (tmp_path / "runs").iterdir()
    assert len(resumes(path)) == 1
    assert audited(path).unfinished == 0
    assert not events(path, JoinRefused)


def test_same_command_goes_on_after_everything_was_killed(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    more = ("--mode", "sync", "--epochs", "6", "--checkpoint-every", "1", "--resume", "auto")
    command = (*TORCHRUN, "-m", "psys", "train", *small_run(small_store_path, "r", *more))
    for kill in range(KILLS):
        with started(*command, cwd=tmp_path) as process:
            wait_until(lambda kill=kill: len(updates(path)) > 6 * kill, "an update", process)  # type: ignore[misc]
            kill_all(process)
    done = run(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    assert len(resumes(path)) == KILLS
    assert audited(path).applied == updates(path)[-1].batches[-1] + 1
    assert same_bits(snapshot(path, VERSION), computed_again(path, VERSION))
    again = run(*command, cwd=tmp_path)
    assert (again.code, "is complete" in again.err) == (0, True), again.err


def test_two_starts_of_one_run_never_write_it_together(small_store_path: Path, tmp_path: Path) -> None:
    command = (PS, *small_run(small_store_path, "r", "--epochs", "4", "--resume", "auto"))
    with started(*command, cwd=tmp_path) as first, started(*command, cwd=tmp_path) as second:
        done = sorted((finished(first), finished(second)), key=lambda each: "is complete" in each.err)
    assert [each.code for each in done] == [0, 0], done
    assert "is complete and evaluated" in done[1].err
    path = tmp_path / "runs" / "r"
    assert not resumes(path)
    assert audited(path).unfinished == 0


def test_run_is_extended_changed_and_evaluated_where_it_was_moved(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"
    first = run(PS, *small_run(small_store_path, "r", "--mode", "sync", "--epochs", "2"), cwd=tmp_path)
    assert first.code == 0, first.err
    accuracy = RunDirectory(path).result()["best"]["validation_accuracy"]
    unchanged = run(PS, "--resume", str(path), cwd=tmp_path)
    assert (unchanged.code, "--epochs extends it" in unchanged.err) == (2, True)

    moved = tmp_path / "elsewhere" / "s"
    moved.parent.mkdir()
    path.rename(moved)
    changes = ("--epochs", "4", "--mode", "async", "--batch-size", "8", "--schedule.learning-rate", "0.01")
    extended = run(PS, "--resume", "s", *changes, cwd=moved.parent)
    assert extended.code == 0, extended.err
    assert "changed from here on: mode sync → async, epochs 2 → 4, batch_size 16 → 8" in extended.err
    (changed,) = events(moved, SettingsChanged)
    assert changed.version == resumes(moved)[0].version
    assert audited(moved).unfinished == 0
    result = RunDirectory(moved).result()
    assert [point["epoch"] for point in result["points"]] == pytest.approx([1, 2, 3, 4], abs=0.2)
    assert result["best"]["validation_accuracy"] >= accuracy
    assert len(events(moved, SnapshotEvaluated)) == 4
    assert {"segments", f"result-{changed.version:08d}.json", "curves.png"} <= {each.name for each in moved.iterdir()}
    assert run("-m", "psys", "audit", "elsewhere/s", cwd=tmp_path).code == 0
