"""The settings that follow mode and workers: what they become, and that they follow a resumed run."""

from pathlib import Path
from typing import Any

import pytest

from psys.ps.policy import Mode
from psys.run.config import RunConfig
from psys.run.defaults import LOOK_AHEAD_UP_TO, rate_in_words, reopened, resolved
from psys.run.directory import RunDirectory

MODES: tuple[Mode, ...] = ("sync", "async", "ssp")


def config(**settings: Any) -> RunConfig:
    return resolved(RunConfig.model_validate(settings))


@pytest.mark.parametrize("mode", MODES)
def test_scaling_is_linear_as_far_as_measured_and_none_with_local_steps(mode: Mode) -> None:
    assert config(mode=mode, workers=9).schedule.scaling == "capped"
    assert config(mode=mode, workers=9, local_steps=2).schedule.scaling == "none"


def test_rate_is_highest_with_all_workers_but_the_backup() -> None:
    assert config(mode="sync", workers=4, backup_workers=1).gradients_of_update == 3
    assert config(mode="async", workers=4).gradients_of_update == 1


@pytest.mark.parametrize("kind", ["rmsprop", "adam"])
def test_rates_of_optimizers_that_divide_by_the_gradients_size_follow_the_root(kind: str) -> None:
    assert config(mode="sync", workers=2, optimizer={"kind": kind}).schedule.scaling == "sqrt"


@pytest.mark.parametrize("workers", [1, LOOK_AHEAD_UP_TO, LOOK_AHEAD_UP_TO + 1])
@pytest.mark.parametrize("mode", MODES)
def test_late_gradients_are_damped_from_some_workers_on(mode: Mode, workers: int) -> None:
    wanted = mode == "async" and workers > LOOK_AHEAD_UP_TO
    late = config(mode=mode, workers=workers)
    assert (late.compensation.gap_aware, late.optimizer.momentum_per_worker) == (wanted, wanted)
    for plain in ({"look_ahead": False}, {"nesterov": False}):
        late = config(mode=mode, workers=workers, optimizer=plain)
        assert (late.compensation.gap_aware, late.optimizer.momentum_per_worker) == (wanted, False)
    if mode == "async":
        assert not config(mode=mode, workers=workers, sync_epochs=1).optimizer.momentum_per_worker
    assert not config(mode=mode, workers=workers, optimizer={"kind": "adam"}).compensation.gap_aware
    assert config(mode=mode, workers=workers, prefetch=1).compensation.gap_aware is (
        mode == "async" and 2 * workers > LOOK_AHEAD_UP_TO
    )


def test_settings_that_a_person_set_stay() -> None:
    none = {"schedule": {"scaling": "none"}, "compensation": {"gap_aware": False}}
    chosen = config(workers=16, **none, optimizer={"momentum_per_worker": False})
    assert (chosen.schedule.scaling, chosen.compensation.gap_aware, chosen.followed) == ("none", False, ())
    assert not chosen.optimizer.momentum_per_worker
    half = config(workers=16, schedule={"scaling": "none", "warmup_epochs": 2}, compensation={"staleness_power": 1})
    assert half.followed == ("compensation.gap_aware", "optimizer.momentum_per_worker")
    assert (half.compensation.gap_aware, half.compensation.staleness_power, half.schedule.warmup_epochs) == (True, 1, 2)


@pytest.mark.parametrize("mode", MODES)
def test_resolved_settings_are_written_and_reopened(tmp_path: Path, mode: Mode) -> None:
    asked = RunConfig.model_validate({"mode": mode, "workers": 8, "runs": tmp_path, "name": "r"})
    run = RunDirectory.create(resolved(asked))
    written = run.config()
    assert written.schedule.scaling == "capped"
    assert resolved(written.model_copy(update={"workers": 2})).schedule == written.schedule
    assert reopened(written).model_dump(exclude={"store"}) == asked.model_dump(exclude={"store"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "async", "workers": 2}, "0.1 for one worker's batch"),
        ({"mode": "sync", "workers": 1}, "0.1 for one worker's batch"),
        (
            {"mode": "sync", "workers": 16},
            "0.1 for one worker's batch, x 8 for the mean of 16 gradients (scaling capped; docs/rates.md)",
        ),
        (
            {"mode": "async", "workers": 8},
            "0.1 for one worker's batch, late gradients by DANA and Gap-Aware (docs/rates.md)",
        ),
    ],
)
def test_rate_in_words_says_what_is_multiplied_and_why(settings: dict[str, Any], words: str) -> None:
    assert rate_in_words(config(**settings)) == words
