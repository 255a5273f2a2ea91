"""The process that evaluates snapshots while a run trains: what it finds, and what happens when it fails."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from psys.cluster.evaluation import SnapshotEvaluation
from psys.config import write_yaml
from psys.data.store import PreparedStore
from psys.ps.messages import Evaluated
from psys.run import evaluate_while_training
from psys.run.directory import RunDirectory
from psys.run.evaluate_while_training import rest_after
from tests.support.runs import FIRST, GOOD, LAST, trained_run, write_tiny_store

_DEADLINE_SECONDS = 120.0  # the process imports torch while other tests keep the cores busy


@pytest.fixture
def store(tmp_path: Path) -> PreparedStore:
    return write_tiny_store(tmp_path / "stores" / "tiny")


@pytest.fixture
def run(tmp_path: Path, store: PreparedStore) -> RunDirectory:
    run = trained_run(tmp_path / "runs", store)
    change(run, early_stopping=5.0)  # the process evaluates at once
    return run


@pytest.fixture
def evaluation(run: RunDirectory) -> Iterator[SnapshotEvaluation]:
    evaluation = SnapshotEvaluation(run)
    yield evaluation
    evaluation.close()


def change(run: RunDirectory, **settings: float | None) -> None:
    write_yaml(run.config().model_copy(update=settings), run.config_file)


def wait_for(evaluation: SnapshotEvaluation, count: int) -> list[Evaluated]:
    found: list[Evaluated] = []
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while len(found) < count and time.monotonic() < deadline:
        found += evaluation.finished()
        time.sleep(0.02)
    return found


def process_of(evaluation: SnapshotEvaluation) -> int:
    assert evaluation._process is not None
    return evaluation._process.pid


def wait_until_given_up(evaluation: SnapshotEvaluation) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while evaluation._process is not None and time.monotonic() < deadline:
        assert evaluation.finished() == []
        time.sleep(0.02)
    assert evaluation._process is None


def test_submitted_snapshots_are_evaluated_the_newest_that_waits_first(evaluation: SnapshotEvaluation) -> None:
    for version in (FIRST, GOOD, LAST):
        evaluation.submit(version, version / 2)
    found = wait_for(evaluation, 3)
    assert sorted(each.version for each in found) == [FIRST, GOOD, LAST]
    assert [each.version for each in found] == [LAST, GOOD, FIRST]  # all wait before the first import is done
    assert {each.version: each.accuracy for each in found[:2]} == {LAST: 0.0, GOOD: 1.0}
    assert all((each.epochs, each.images) == (each.version / 2, 4) for each in found)


def test_missing_snapshot_is_passed_over(evaluation: SnapshotEvaluation, run: RunDirectory) -> None:
    run.snapshot_path(LAST).unlink()
    evaluation.submit(GOOD, 2.0)
    evaluation.submit(LAST, 3.0)
    assert [each.version for each in wait_for(evaluation, 1)] == [GOOD]
    assert "cannot load" in (run.logs / "evaluation.log").read_text(encoding="utf-8")


def test_snapshots_are_evaluated_every_so_many_epochs(run: RunDirectory) -> None:
    change(run, evaluate_every=2.0)
    evaluation = SnapshotEvaluation(run, epochs=1.0)
    try:
        evaluation.submit(FIRST, 2.0)
        evaluation.submit(GOOD, 3.0)
        evaluation.submit(LAST, 4.0)
        assert sorted(each.version for each in wait_for(evaluation, 2)) == [FIRST, LAST]
    finally:
        evaluation.close()


@pytest.mark.parametrize("off", [{"evaluate_every": 0.0}, {"validation_share": 0.0}])
def test_process_is_not_started_when_evaluation_is_off(run: RunDirectory, off: dict[str, float]) -> None:
    change(run, early_stopping=None, **off)
    evaluation = SnapshotEvaluation(run)
    evaluation.submit(FIRST, 1.0)
    assert evaluation._process is None
    assert evaluation.finished() == []


@pytest.mark.parametrize(
    ("settings", "pace"),
    [
        ({}, "idle"),
        ({"evaluate_every": 2.0}, "full"),
        ({"early_stopping": 5.0}, "full"),
    ],
)
def test_process_takes_a_small_share_of_idle_cores_unless_evaluations_are_asked_for(
    run: RunDirectory, settings: dict[str, float], pace: str
) -> None:
    change(run, **{"early_stopping": None, **settings})
    evaluation = SnapshotEvaluation(run)
    try:
        evaluation.submit(LAST, 3.0)
        assert psutil.Process(process_of(evaluation)).cmdline()[-1] == pace
    finally:
        evaluation.close()


def test_rest_keeps_the_share_of_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_while_training, "available_cores", lambda: 2)
    assert rest_after(0.2) == pytest.approx(9.8)  # 0.2 s of 10 s on 2 cores are 1 %
    monkeypatch.setattr(evaluate_while_training, "available_cores", lambda: 200)
    assert rest_after(0.2) == 0.0


def test_process_that_is_killed_is_reported_once_and_not_started_again(
    evaluation: SnapshotEvaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation.submit(FIRST, 1.0)
    os.kill(process_of(evaluation), signal.SIGKILL)
    wait_until_given_up(evaluation)
    evaluation.submit(GOOD, 2.0)
    assert evaluation._process is None
    assert capsys.readouterr().err.count("no evaluation while training any more, the run goes on") == 1


def test_process_that_fails_names_its_log(
    evaluation: SnapshotEvaluation, run: RunDirectory, store: PreparedStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.path / "manifest.json").unlink()
    evaluation.submit(FIRST, 1.0)
    wait_until_given_up(evaluation)
    assert str(run.logs / "evaluation.log") in capsys.readouterr().err
    assert (run.logs / "evaluation.log").read_text(encoding="utf-8")


def test_stopped_process_delays_nothing(evaluation: SnapshotEvaluation) -> None:
    evaluation.submit(FIRST, 1.0)
    pid = process_of(evaluation)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    for version in range(1, 10_000):
        evaluation.submit(version, float(version))
    assert evaluation.finished() == []
    evaluation.close()
    assert time.monotonic() - began < 10.0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
