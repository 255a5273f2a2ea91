"""Evaluation while a run trains, seen from outside: early stopping, and an evaluation process that is killed."""

import signal
from pathlib import Path

import psutil

from psys.ps.events import RunEnded, SnapshotEvaluated, SnapshotSaved, StoppedEarly
from psys.run.directory import RunDirectory
from tests.support.processes import PS, events, family, finished, run, small_run, started, wait_until


def test_run_whose_held_out_accuracy_stays_the_same_stops_early_and_is_evaluated(
    small_store_path: Path, tmp_path: Path
) -> None:
    unchanging = ("--model", "mlp16", "--schedule.learning-rate", "1e-30", "--epochs", "5000")
    done = run(PS, *small_run(small_store_path, "r", *unchanging, "--early-stopping", "2"), cwd=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "runs" / "r"
    [stopped], [end] = events(path, StoppedEarly), events(path, RunEnded)
    assert end.unfinished > 0 == end.lost
    result = RunDirectory(path).result()
    assert "stopped early" in done.out
    assert result["best"]["validation_accuracy"] == stopped.best_accuracy
    assert len(result["points"]) == len(events(path, SnapshotSaved)) == len(events(path, SnapshotEvaluated))


def test_run_goes_on_when_its_evaluation_process_is_killed(small_store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "r"

    def evaluation_processes() -> list[psutil.Process]:
        return [each for each in family(process) if "psys.run.evaluate_while_training" in each.cmdline()]

    with started(
        PS, *small_run(small_store_path, "r", "--epochs", "40", "--evaluate-every", "1"), cwd=tmp_path
    ) as process:
        wait_until(lambda: bool(evaluation_processes()), "an evaluation process", process)
        for each in evaluation_processes():
            each.send_signal(signal.SIGKILL)
        done = finished(process)
    assert done.code == 0, done.err
    assert done.err.count("no evaluation while training any more, the run goes on") == 1
    assert len(events(path, SnapshotEvaluated)) == len(events(path, SnapshotSaved))
