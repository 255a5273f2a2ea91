import json
from pathlib import Path

import pytest

from psys.errors import PsysError
from psys.tradeoff.plan import Trial, study_trials
from psys.tradeoff.progress import remaining
from psys.tradeoff.record import TrialLog
from psys.tradeoff.trial import Finished
from tests.support.studies import study

FIRST, SECOND = study_trials(study(), {})
DONE = Finished(None, 100.0, 130.0, 0.25, "host")
FAILED = Finished("it diverged", 130.0, 140.0, 0.5, "host")


def evaluated(folder: Path, trial: Trial) -> None:
    run = folder / "trials" / trial.name
    run.mkdir(parents=True)
    (run / "result.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with a trial that is done and one that failed."""
    evaluated(tmp_path, FIRST)
    log = TrialLog(tmp_path)
    log.add(FIRST, DONE)
    log.add(SECOND, FAILED)
    return tmp_path


def test_finished_trials_are_read_back(folder: Path) -> None:
    first, second = TrialLog(folder).records.values()
    assert (first.trial, first.arm, first.condition, first.seed) == ("first.uniform.seed0", "first", "uniform", 0)
    assert (first.status, first.reason, first.seconds, first.load, first.host) == ("done", None, 30.0, 0.25, "host")
    assert (second.status, second.reason) == ("failed", "it diverged")
    lines = (folder / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [FIRST.name, SECOND.name]


def test_a_last_line_that_was_cut_short_is_not_read(folder: Path) -> None:
    file = folder / "trials.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    log = TrialLog(folder)
    assert list(log.records) == [FIRST.name]
    log.add(SECOND, FAILED)
    assert list(TrialLog(folder).records) == [FIRST.name, SECOND.name]


def test_a_trial_whose_results_are_gone_has_not_finished(folder: Path) -> None:
    (folder / "trials" / FIRST.name / "result.json").unlink()
    assert list(TrialLog(folder).records) == [SECOND.name]


def test_a_line_that_is_not_a_trial_is_named(folder: Path) -> None:
    file = folder / "trials.jsonl"
    for line in ("nonsense\n", "{}\n"):
        file.write_text(line + file.read_text(), encoding="utf-8")
        with pytest.raises(PsysError, match=r"trials.jsonl line 1"):
            TrialLog(folder)


def test_failed_trials_are_forgotten_to_run_again(folder: Path) -> None:
    log = TrialLog(folder)
    log.forget_failed()
    assert list(log.records) == [FIRST.name]
    assert list(TrialLog(folder).records) == [FIRST.name, SECOND.name]
    log.write()
    assert list(TrialLog(folder).records) == [FIRST.name]


def test_remaining_time_is_that_of_trials_that_are_done(folder: Path) -> None:
    records = list(TrialLog(folder).records.values())
    assert remaining(records, total=5) == 3 * 30.0
    assert remaining(records[1:], total=5) == 0.0
