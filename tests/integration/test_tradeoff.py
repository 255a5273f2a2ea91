"""Studies of real trials: killed and started again, with an arm that fails, tuned."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from psys.config import validate
from psys.run.directory import RunDirectory
from psys.tradeoff.config import StudyConfig
from psys.tradeoff.plan import study_trials
from psys.tradeoff.trial import end_trials, run_trial
from tests.support.processes import audited, finished, run, started, wait_until
from tests.support.studies import study_settings, write_study

TRADEOFF = ("-m", "psys", "tradeoff", "--config", "s.yaml")
DIVERGES = {"mode": "sync", "schedule.learning_rate": 1e10}


def records(study: Path) -> dict[str, dict[str, Any]]:
    file = study / "trials.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {record["trial"]: record for record in map(json.loads, lines)}


def trial_processes(study: Path) -> list[str]:
    """Command lines of the living processes of the study's trials."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PSYS_TRIAL", "").startswith(str(study)):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()


def interrupt(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGINT)


def test_a_stopped_study_goes_on_and_repeats_no_finished_trial(small_store_path: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "s.yaml", small_store_path, arms={"first": {}, "second": {}, "third": DIVERGES})
    study = tmp_path / "studies" / "s"
    log = study / "logs" / "second.uniform.seed0.log"
    first: dict[str, Any] = {}
    for stop, code in ((kill, -9), (interrupt, 130)):
        log.unlink(missing_ok=True)
        with started(*TRADEOFF, cwd=tmp_path) as process:
            wait_until(lambda: log.exists() and bool(trial_processes(study)), "the second trial", process)
            first = first or records(study)["first.uniform.seed0"]
            stop(process)
            done = finished(process)
            assert done.code == code, done
            wait_until(lambda: not trial_processes(study), "the end of the trial's processes")
        assert records(study) == {"first.uniform.seed0": first}
        assert (study / "report.html").exists() == (stop is interrupt)
    done = run(*TRADEOFF, cwd=tmp_path)
    assert done.code == 1, done
    assert list(records(study)) == ["first.uniform.seed0", "second.uniform.seed0", "third.uniform.seed0"]
    assert records(study)["first.uniform.seed0"] == first
    assert records(study)["second.uniform.seed0"]["status"] == "done"
    third = records(study)["third.uniform.seed0"]
    assert third["status"] == "failed"
    assert third["reason"].startswith("training diverged")
    assert "2/3 second.uniform.seed0: " in done.out
    assert "3/3 third.uniform.seed0: failed: training diverged" in done.out
    for name in ("first", "second"):
        trial = study / "trials" / f"{name}.uniform.seed0"
        assert audited(trial).unfinished == 0
        assert (RunDirectory(trial).config().seed, RunDirectory(trial).config().evaluate_every) == (0, 0)


def test_tuned_arms_use_the_value_of_the_highest_held_out_accuracy(small_store_path: Path, tmp_path: Path) -> None:
    tuning = {"setting": "schedule.learning_rate", "values": [1e10, 0.02]}
    write_study(tmp_path / "s.yaml", small_store_path, arms={"only": {"mode": "sync"}}, tuning=tuning)
    done = run(*TRADEOFF, cwd=tmp_path)
    assert done.code == 1, done
    found = records(tmp_path / "studies" / "s")
    assert [(name, record["tuning"], record["status"]) for name, record in found.items()] == [
        ("only.uniform.seed1000.value0", 1e10, "failed"),
        ("only.uniform.seed1000.value1", 0.02, "done"),
        ("only.uniform.seed0", None, "done"),
    ]
    trial = RunDirectory(tmp_path / "studies" / "s" / "trials" / "only.uniform.seed0")
    assert trial.config().schedule.learning_rate == 0.02


def test_a_trial_that_takes_longer_than_its_limit_has_failed(small_store_path: Path, tmp_path: Path) -> None:
    hangs = {"hung": {"faults": [{"worker": 0, "step": 0, "kind": "slow", "seconds": 3600}]}}
    settings = study_settings(small_store_path, arms={"only": {"mode": "sync"}}, stragglers=hangs)
    (trial,) = study_trials(validate(StudyConfig, settings, "test"), {})
    assert run_trial(trial, tmp_path, idle_wait=0.0, timeout=5.0).reason == "it was ended after 5 s"
    assert not trial_processes(tmp_path)


def test_a_start_ends_what_the_trials_of_a_killed_study_left(tmp_path: Path) -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    left, other = (
        subprocess.Popen(sleeps, env={**os.environ, "PSYS_TRIAL": str(tmp_path / study / "a.uniform.seed0")})
        for study in ("study", "study2")
    )
    try:
        end_trials(tmp_path / "study")
        assert not psutil.pid_exists(left.pid)
        assert other.poll() is None
    finally:
        left.kill()
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": [1.5]}, "'targets.0'"),
        ({"arms": {"a": {"modell": "mlp8"}}}, "did you mean 'model'"),
        ({"base": {"workers": 1, "store": "no/store", "source": "no/source"}}, "no/source does not exist"),
        ({"base": {"workers": 1, "store": "no/store", "source": None}}, "no prepared store at no/store"),
    ],
)
def test_a_wrong_study_ends_before_anything_runs(
    small_store_path: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    write_study(tmp_path / "s.yaml", small_store_path, **changes)
    done = run(*TRADEOFF, cwd=tmp_path)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("psys: error: ")
    assert words in line
    assert not (tmp_path / "studies").exists()
