"""Which versions of a training that diverged are sound, found from events written by hand."""

import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psys.ps.events import RunDiverged, RunEvent, SnapshotEvaluated
from psys.ps.ledger import Ledger
from psys.ps.store import SliceState
from psys.run.checkpoint import CheckpointMetadata
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.divergence import advice, divergence, epochs_at, last_sound_version, sound_checkpoint
from psys.run.events import surviving
from tests.support.runs import end, start, update, write_events


def applied(*losses: float, staleness: int = 0) -> list[RunEvent]:
    """Updates with these losses, beginning with version 1."""
    return [update(version, loss=loss, staleness=(staleness,)) for version, loss in enumerate(losses, 1)]


def diverged(version: int) -> RunDiverged:
    return RunDiverged(version=version, batch=0, seconds=1.0)


def evaluated(version: int, loss: float) -> SnapshotEvaluated:
    return SnapshotEvaluated(version=version, loss=loss, accuracy=0.1, images=4)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [start("0a1b")],
        applied(2.3, 1.0, 0.5),
        applied(2.3, *[1.0] * 8, *[99.0] * 9),
        applied(2.3, *[6.8] * 20),
        applied(0.1, *[2.9] * 20),
        [*applied(2.3, 1.0), evaluated(2, 1e30)],
        applied(2.3, math.inf, *[1.0] * 100),
    ],
)
def test_training_that_did_not_diverge_has_no_last_sound_version(events: list[RunEvent]) -> None:
    assert last_sound_version(events) is None
    assert divergence(events) is None


@pytest.mark.parametrize(
    ("events", "sound"),
    [
        # The gradient of a batch was not finite.
        ([*applied(2.3, 1.0, 0.5, 0.4), diverged(4)], 3),
        ([*applied(2.3, 1.0, 0.5, 0.4), diverged(3)], 2),
        ([*applied(2.3, 1.0, 0.5, 0.4, staleness=1), diverged(4)], 2),  # no gradient was computed at version 3
        ([diverged(0)], 0),
        ([*applied(2.3), diverged(0)], 0),
        # The loss was high before: the parameters that it was computed with are not sound.
        ([*applied(2.3, 1.0, 0.5, 7.0), diverged(4)], 2),
        ([*applied(2.3, 1.0, 0.5, math.nan), diverged(4)], 2),
        ([*applied(2.3, 1.0, 7.0, 0.5, 7.0), diverged(5)], 1),
        ([*applied(2.3, 1.0, 7.0, *[0.5] * 98, 7.0), diverged(102)], 1),
        ([*applied(2.3, 1.0, 7.0, *[0.5] * 99, 7.0), diverged(103)], 101),
        ([*applied(2.3, 1.0, 7.0, *[0.5] * 100), diverged(103)], 102),
        ([*applied(1e9, 1.0, 0.5), diverged(3)], 2),
        ([*applied(math.nan, 1.0, 0.5), diverged(3)], 0),
        # The run was killed before a batch had three gradients that are not finite.
        (applied(2.3, 1.0, 0.5, math.nan), 2),
        (applied(2.3, 1.0, 0.5, math.inf, 0.5), 2),
        # All last losses are high.
        (applied(2.3, 1.0, 0.5, *[7.0] * 10), 2),
        # An evaluation is not finite.
        ([*applied(2.3, 1.0, 0.5), evaluated(2, 1.0), evaluated(3, math.nan)], 2),
        ([*applied(2.3, 1.0, 7.0, 7.0), evaluated(4, math.inf)], 1),
    ],
)
def test_last_sound_version_is_before_all_signs_of_divergence(events: list[RunEvent], sound: int) -> None:
    assert last_sound_version(events) == sound
    assert last_sound_version(iter(events)) == sound


def test_version_read_by_stale_gradients_of_high_loss_is_not_sound() -> None:
    """The events of a run of two workers at the rate 1e8."""
    losses = [(2.79, 0), (2.77, 1), (2.77e12, 1), (6.28e16, 1), (3.23e26, 1)]
    events: list[RunEvent] = [
        update(version, loss=loss, staleness=(stale,)) for version, (loss, stale) in enumerate(losses, 1)
    ]
    assert last_sound_version([*events, diverged(4)]) == 0


@given(
    exploded=st.integers(1, 40),
    length=st.integers(0, 40),
    staleness=st.lists(st.integers(0, 5), min_size=100, max_size=100),
)
def test_no_version_from_the_explosion_on_is_called_sound(exploded: int, length: int, staleness: list[int]) -> None:
    """Versions from `exploded` on are worthless: every loss at them is high."""
    versions = range(1, exploded + length + 1)
    read = [max(0, version - 1 - staleness[version]) for version in versions]
    events: list[RunEvent] = [
        update(version, loss=1e3 if at >= exploded else 1.0, staleness=(version - 1 - at,))
        for version, at in zip(versions, read, strict=True)
    ]
    sound = last_sound_version([*events, diverged(exploded + length)])
    assert sound == max(version for version in read if version < exploded)


def test_divergence_before_a_resume_does_not_count() -> None:
    events = [start("0a1b"), *applied(2.3, 1.0, 99.0, math.nan), diverged(3), end()]
    assert divergence(surviving(events)) == diverged(3)
    resumed = surviving([*events, start("0a1b", "resume", version=1)])
    assert divergence(resumed) is None
    assert last_sound_version(resumed) is None


def run_with_checkpoints(folder: Path, *versions: int, **settings: Any) -> RunDirectory:
    run = RunDirectory.create(RunConfig(name="r", runs=folder, keep_checkpoints=9, **settings))
    ledger = Ledger(1, 1, 1).state()
    for version in versions:
        metadata = CheckpointMetadata(version=version, train_seconds=1.0, workers_named=1, ledger=ledger)
        state = SliceState(version, torch.zeros(3), torch.zeros(1), {})
        run.checkpoints(9).save(metadata, state)
    return run


def test_sound_checkpoint_is_the_newest_undamaged_one_of_a_sound_version(tmp_path: Path) -> None:
    run = run_with_checkpoints(tmp_path, 1, 2, 3, 4)
    before = applied(2.3, 1.0, 0.5, 0.5, 0.5)

    def found(*events: RunEvent) -> int | None:
        checkpoint = sound_checkpoint(run, [*before, *events])
        return checkpoint.metadata.version if checkpoint else None

    assert found() == 4
    assert found(diverged(4)) == 3
    assert found(diverged(1)) is None
    (run.path / "checkpoints" / "00000003" / "state.safetensors").write_bytes(b"damaged")
    assert found(diverged(4)) == 2
    assert found() == 4


def test_advice_names_the_sound_checkpoint_and_half_the_rate(tmp_path: Path) -> None:
    run = run_with_checkpoints(tmp_path / "with a space", 2, 3, schedule={"learning_rate": 0.1})
    write_events(run, [start("0a1b"), *applied(2.3, 1.0, 0.5), diverged(3)])
    assert advice(run) == (
        "the last sound checkpoint is that of version 2 (epoch 1): "
        f"`--resume {shlex.quote(str(run.path))} --schedule.learning-rate 0.05` continues from it with half the rate"
    )
    assert f"'{tmp_path}/with a space/r'" in advice(run)


def test_advice_without_a_sound_checkpoint_is_to_start_over(tmp_path: Path) -> None:
    run = run_with_checkpoints(tmp_path, 3, schedule={"learning_rate": 1e8})
    write_events(run, [start("0a1b"), *applied(2.3, 1e9, 1e9), diverged(3)])
    assert advice(run) == (
        f"there is no sound checkpoint: `--resume {run.path} --schedule.learning-rate 5e+07` starts it over"
    )


def test_epochs_of_version_0_are_none() -> None:
    assert epochs_at(0, applied(1.0)) == 0
    assert epochs_at(1, applied(1.0)) == 0.5
