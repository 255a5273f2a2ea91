"""What may change when a run is resumed, and which runs cannot be."""

from pathlib import Path
from typing import Any

import pytest

from psys.errors import PsysError
from psys.run.config import RestartConfig, RunConfig
from psys.run.directory import RunDirectory
from psys.training.resume import resume


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(RunConfig(runs=tmp_path, name="r", workers=2))


def changed(run: RunDirectory, settings: dict[str, Any]) -> RunConfig:
    return run.config().model_copy(update=settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 3, "threads": 2},
        {"servers": 3, "remote_servers": 2},
        {"restarts": RestartConfig(failures=0)},
        {"start_timeout": 1.0, "join_timeout": 2.0, "leave_timeout": 3.0},
        {"checkpoint_every": "7", "keep_checkpoints": 1},
    ],
    ids=",".join,
)
def test_settings_that_do_not_say_what_is_computed_may_change(run: RunDirectory, settings: dict[str, Any]) -> None:
    wanted = changed(run, settings)
    resume(run, wanted)
    assert run.config() == wanted


@pytest.mark.parametrize("settings", [{"seed": 1}, {"mode": "sync"}, {"batch_size": 8, "epochs": 3}], ids=",".join)
def test_other_settings_are_refused_by_name(run: RunDirectory, settings: dict[str, Any]) -> None:
    before = run.config()
    with pytest.raises(PsysError, match=r"with another .*: start a new run") as error:
        resume(run, changed(run, settings))
    assert all(name in str(error.value) for name in settings)
    assert run.config() == before


def test_evaluated_run_is_not_resumed(run: RunDirectory) -> None:
    (run.path / "result.json").write_text("{}")
    with pytest.raises(PsysError, match="nothing to resume"):
        resume(run, run.config())


def test_damaged_newest_checkpoint_is_named(run: RunDirectory) -> None:
    (run.path / "checkpoints" / "00000001").mkdir(parents=True)
    with pytest.raises(PsysError, match=r"00000001.*; there is no undamaged one before it"):
        resume(run, run.config())
