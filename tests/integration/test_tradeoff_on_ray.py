"""Trials as tasks of Ray, and on a node that does not share the driver's disk."""

from pathlib import Path

import pytest

from psys.config import validate
from psys.run.directory import RunDirectory
from psys.tradeoff import on_ray
from psys.tradeoff.config import StudyConfig, TuningConfig
from psys.tradeoff.plan import study_trials
from psys.tradeoff.record import TrialLog
from psys.tradeoff.study import check_unchanged
from tests.support.processes import audited
from tests.support.studies import study_settings

ARMS = {"good": {"mode": "sync"}, "bad": {"mode": "sync", "schedule.learning_rate": 1e10}}


@pytest.fixture
def config(small_store_path: Path) -> StudyConfig:
    base = {"store": str(small_store_path), "model": "mlp8", "workers": 1, "epochs": 1}
    return validate(StudyConfig, study_settings(small_store_path, base=base, arms=ARMS), "test")


def test_trials_of_a_local_ray_come_back_to_the_study(config: StudyConfig, tmp_path: Path) -> None:
    log = TrialLog(tmp_path)
    tuned = config.model_copy(update={"tuning": TuningConfig(setting="threads", values=(1, 2))})
    for trial, finished in on_ray.run_trials(tuned, study_trials(tuned, {"good": 2}), tmp_path):
        log.add(trial, finished)
    good, bad = (TrialLog(tmp_path).records[f"{arm}.uniform.seed0"] for arm in ("good", "bad"))
    assert (good.status, bad.status) == ("done", "failed")
    assert bad.reason
    assert bad.reason.startswith("training diverged")
    run = RunDirectory(tmp_path / "trials" / "good.uniform.seed0")
    assert audited(run.path).unfinished == 0
    assert run.config().threads == 2
    assert RunDirectory(tmp_path / "trials" / "bad.uniform.seed0").config().threads == 1
    chosen = {**ARMS, "good": {"mode": "sync", "threads": 2}}
    check_unchanged(config.model_copy(update={"arms": chosen}), TrialLog(tmp_path))
    assert (tmp_path / "logs" / "bad.uniform.seed0.log").exists()
    assert not list(tmp_path.glob(".node-*"))


def test_a_node_without_a_store_that_is_too_large_to_send_says_where_to_put_it(
    config: StudyConfig, tmp_path: Path
) -> None:
    trial = study_trials(config, {})[0]
    finished, left = on_ray.run_on_node(trial, tmp_path / "none", "hash", b"", None)
    assert finished.reason
    assert f"needs a copy of the store at {tmp_path / 'none'}" in finished.reason
    assert left == b""
