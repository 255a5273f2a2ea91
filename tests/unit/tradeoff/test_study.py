"""What may be changed of a study that has finished trials, and what a dry run shows."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from psys.errors import PsysError
from psys.tradeoff.config import StudyCommand
from psys.tradeoff.plan import study_trials, tuning_trials
from psys.tradeoff.record import TrialLog
from psys.tradeoff.study import check_unchanged, run_study
from psys.tradeoff.trial import Finished, write_settings
from tests.support.studies import study, study_settings

ARMS: dict[str, dict[str, Any]] = {"first": {"mode": "sync"}, "second": {"mode": "async"}}
KILL = {"faults": [{"worker": 0, "step": 3, "kind": "kill"}]}


@pytest.fixture
def log(tmp_path: Path) -> TrialLog:
    """Two finished trials of each arm with seeds 0 and 1: all failed, which counts as finished too."""
    log = TrialLog(tmp_path)
    for trial in study_trials(study(seeds=2, stragglers={"killed": KILL}), {}):
        write_settings(trial, tmp_path)
        log.add(trial, Finished("it failed", 0.0, 1.0, 0.0, "host"))
    return log


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": [1, 0, 2]},
        {"arms": {**ARMS, "third": {"epochs": 1}}},
        {"stragglers": {"uniform": {}, "killed": KILL}},
        {"targets": [0.5], "margin": 0.02, "reference": "second"},
        {"arms": {"first": {"mode": "sync", "batch_size": 64}, "second": {}}},
    ],
    ids=["nothing", "seeds", "arms", "conditions", "report", "defaults spelt out"],
)
def test_a_study_that_has_run_can_be_extended(log: TrialLog, changes: dict[str, Any]) -> None:
    check_unchanged(study(**{"seeds": 2, "stragglers": {"killed": KILL}} | changes), log)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ARMS | {"second": {"optimizer.momentum": 0.5}}}, "of arm 'second' with another optimizer.momentum: "),
        ({"base": {"workers": 2, "batch_size": 8}}, "of arm 'first' with another .*workers.*batch_size"),
        ({"stragglers": {"killed": {}}}, "of condition 'killed' with other stragglers"),
        ({"stragglers": {"uniform": {}}}, "of arm 'first', condition 'killed', seed 0, which is not in the study any"),
        ({"arms": {"first": {"mode": "sync"}}}, "arm 'second'.*not in the study any more: choose another --name"),
        ({"seeds": 1}, "seed 1, which is not in the study any more"),
    ],
)
def test_what_finished_trials_were_trained_with_cannot_change(
    log: TrialLog, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PsysError, match=message):
        check_unchanged(study(**{"seeds": 2, "stragglers": {"killed": KILL}} | changes), log)


TUNING: dict[str, Any] = {"setting": "schedule.learning_rate", "values": [0.1, 0.2]}


def tuned(folder: Path, **changes: Any) -> TrialLog:
    """A study in which the arm `first` chose the second value, because the first one failed, and has one trial."""
    config, log = study(tuning=TUNING, **changes), TrialLog(folder)
    trials = [*tuning_trials(config), *study_trials(config, {"first": 0.2, "second": 0.2})]
    for trial in trials[:5]:
        run = log.run(trial.name)
        run.path.mkdir(parents=True)
        run.write_result({"best": {"validation_accuracy": 0.5}})
        write_settings(trial, folder)
        failed = "it failed" if trial.tuning == 0.1 else None
        log.add(trial, Finished(failed, 0.0, 1.0, 0.0, "host"))
    return log


@pytest.mark.parametrize("added", [{"values": [0.1, 0.2, 0.3]}, {"seeds": [1000, 1001]}])
def test_what_an_arm_tries_is_fixed_before_its_trials(tmp_path: Path, added: dict[str, Any]) -> None:
    log = tuned(tmp_path)
    check_unchanged(study(tuning=TUNING), log)
    with pytest.raises(PsysError, match="of arm 'first' that were not tuned by first.*: what an arm tries is fixed"):
        check_unchanged(study(tuning=TUNING | added), log)
    del log.records["first.uniform.seed0"]
    check_unchanged(study(tuning=TUNING | added), log)


def test_tuning_cannot_be_added_to_trials(log: TrialLog) -> None:
    with pytest.raises(PsysError, match="what an arm tries is fixed"):
        check_unchanged(study(seeds=2, stragglers={"killed": KILL}, tuning=TUNING), log)


def test_failed_trials_of_a_tuning_that_was_used_do_not_run_again(tmp_path: Path) -> None:
    log = tuned(tmp_path)
    log.forget_failed()
    assert {record.arm for record in log.records.values() if record.status == "failed"} == {"first"}
    check_unchanged(study(tuning=TUNING), log)


def test_a_refused_start_forgets_no_failed_trial(small_store_path: Path, tmp_path: Path) -> None:
    tuned(tmp_path / "s")
    (tmp_path / "s" / "study.yaml").touch()
    before = (tmp_path / "s" / "trials.jsonl").read_bytes()
    with pytest.raises(PsysError, match="with another store"):
        run_study(
            StudyCommand(**study_settings(small_store_path, tuning=TUNING, studies=tmp_path, retry_failed=True)),
            Console(),
        )
    assert (tmp_path / "s" / "trials.jsonl").read_bytes() == before


def test_failed_trials_that_are_to_run_again_may_change(log: TrialLog) -> None:
    log.forget_failed()
    check_unchanged(study(arms={"first": {"epochs": 5}}), log)


def test_dry_run_shows_the_trials_and_runs_nothing(small_store_path: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    settings = study_settings(small_store_path, studies=tmp_path / "studies", seeds=2, dry_run=True)
    assert run_study(StudyCommand(**settings), Console(file=shown))
    assert shown.getvalue().splitlines() == [
        *("first.uniform.seed0: to run", "second.uniform.seed0: to run"),
        *("first.uniform.seed1: to run", "second.uniform.seed1: to run"),
        "4 of 4 trials are to run: no trial is done yet",
    ]
    assert not list(tmp_path.iterdir())
