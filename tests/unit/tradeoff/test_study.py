"""What may be changed of a study that has finished trials, and what a dry run shows."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from psys.config import validate, write_yaml
from psys.errors import PsysError
from psys.tradeoff.config import StudyCommand, StudyConfig
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
        {"targets": [0.5]},
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


def tuned(folder: Path, store: Path | str = "no/store", failing: tuple[str, ...] = ()) -> TrialLog:
    """A study whose first value failed in all arms, the second in those `failing`; the arm `first` has its trial."""
    config, log = validate(StudyConfig, study_settings(store, tuning=TUNING), "test"), TrialLog(folder)
    folder.mkdir(exist_ok=True)
    write_yaml(config, folder / "study.yaml")
    chosen = {arm: 0.2 for arm in config.arms if arm not in failing}
    for trial in [*tuning_trials(config), *(each for each in study_trials(config, chosen)[:1] if each.arm in chosen)]:
        failed = trial.tuning == 0.1 or trial.arm in failing
        write_settings(trial, folder)
        log.run(trial.name).path.mkdir(parents=True)
        if not failed:
            log.run(trial.name).write_result({"best": {"validation_accuracy": 0.5}})
        log.add(trial, Finished("it failed" if failed else None, 0.0, 60.0, 0.0, "host"))
    return log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 0.02}, "'margin' was None when trials"),
        ({"reference": "second"}, "'reference' was first when trials"),
    ],
)
def test_margin_and_reference_are_fixed_before_the_trials(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    log = tuned(tmp_path)
    with pytest.raises(PsysError, match=message):
        check_unchanged(study(tuning=TUNING, **changes), log)
    check_unchanged(study(tuning=TUNING, targets=[0.5]), log)
    del log.records["first.uniform.seed0"]
    check_unchanged(study(tuning=TUNING, **changes), log)


def dry_run(store: Path, studies: Path, **changes: Any) -> list[str]:
    """The lines that a dry run of the `tuned` study shows."""
    shown = io.StringIO()
    settings = study_settings(store, studies=studies, dry_run=True, tuning=TUNING, **changes)
    assert run_study(StudyCommand(**settings), Console(file=shown))
    return shown.getvalue().splitlines()


@pytest.mark.parametrize("added", [{"values": [0.1, 0.2, 0.3]}, {"seeds": [1000, 1001]}])
def test_what_an_arm_tries_is_fixed_before_its_trials(tmp_path: Path, added: dict[str, Any]) -> None:
    log = tuned(tmp_path)
    check_unchanged(study(tuning=TUNING), log)
    with pytest.raises(PsysError, match=r"of arm 'first' that were not tuned by first.*: what an arm tries is fixed"):
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
        "4 of 4 trials are to run",
    ]
    assert not list(tmp_path.iterdir())


def test_dry_run_shows_what_has_finished_and_how_long_the_rest_takes(small_store_path: Path, tmp_path: Path) -> None:
    tuned(tmp_path / "s", small_store_path)
    assert dry_run(small_store_path, tmp_path)[-3:] == [
        *("first.uniform.seed0: done", "second.uniform.seed0: to run"),
        "1 of 6 trials are to run: about 1 min, as long as trials so far took",
    ]


def test_arms_whose_tuning_failed_have_no_trials_to_run(small_store_path: Path, tmp_path: Path) -> None:
    tuned(tmp_path / "s", small_store_path, failing=("first", "second"))
    assert dry_run(small_store_path, tmp_path)[-1] == "0 of 4 trials are to run"


def test_dry_run_refuses_what_a_start_refuses(small_store_path: Path, tmp_path: Path) -> None:
    tuned(tmp_path / "s", small_store_path)
    with pytest.raises(PsysError, match="of arm 'first' with another batch_size"):
        dry_run(small_store_path, tmp_path, arms={"first": {"mode": "sync", "batch_size": 8}, "second": {}})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    with pytest.raises(PsysError, match="other holds other files than those of a study"):
        dry_run(small_store_path, tmp_path, name="other")


def test_an_arm_with_images_that_the_store_lacks_is_named(small_store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"pixels only: .*[(]in arm 'second'[)]"):
        dry_run(small_store_path, tmp_path, arms={"first": {}, "second": {"image_size": 64}})
