"""What may change when a run is resumed, what is recorded of it, and which runs cannot be resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.ps.events import RunEvent, SettingsChanged, StoppedEarly
from psys.ps.ledger import Ledger
from psys.run.assembly import initial_ledger, initial_model, initial_slice
from psys.run.checkpoint import CheckpointMetadata
from psys.run.config import RestartConfig, RunConfig
from psys.run.defaults import reopened, resolved
from psys.run.directory import RunDirectory
from psys.run.events import EventLog, read_events
from psys.training.resume import resume
from tests.support.runs import end, start, update, write_events, write_tiny_store

EPOCHS, PER_EPOCH = 4, 5
"""Epochs and batches an epoch of the run, of 20 images in batches of 4."""
RESULT = {"last": {"version": EPOCHS * PER_EPOCH}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    return write_tiny_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture
def run(store: PreparedStore, tmp_path: Path) -> RunDirectory:
    """A run that was stopped when its first 7 of 20 batches were applied."""
    settings = {"model": "mlp2", "epochs": EPOCHS, "batch_size": 4, "validation_share": 0, "workers": 2}
    config = RunConfig.model_validate({"runs": tmp_path, "name": "r", "store": store.path, **settings})
    made = RunDirectory.create(config)
    write_events(made, [start(store.content_hash), end(unfinished=13)])
    save_checkpoint(made, store, 7)
    return made


def save_checkpoint(run: RunDirectory, store: PreparedStore, batches: int) -> None:
    ledger = initial_ledger(run.config(), store)
    for version in range(batches):
        lease = ledger.lease("worker0", version, slot=0)
        ledger.accept(lease)
        ledger.apply(lease)
    metadata = CheckpointMetadata(version=batches, train_seconds=1.0, workers_named=1, ledger=ledger.state())
    state = initial_slice(run.config(), initial_model(run.config(), 2), 0).store.state()
    run.checkpoints(keep=3).save(metadata, state._replace(version=batches))


def changed(run: RunDirectory, **settings: Any) -> RunConfig:
    dump = run.config().model_dump()
    for name, value in settings.items():
        dump[name] = {**dump[name], **value} if isinstance(value, dict) else value
    return RunConfig(**dump)


def changes(run: RunDirectory) -> list[SettingsChanged]:
    return [event for event in read_events(run.events) if isinstance(event, SettingsChanged)]


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 2},
        {"servers": 3, "remote_servers": 2, "remote_workers": 1},
        {"restarts": RestartConfig(failures=0)},
        {"start_timeout": 1.0, "join_timeout": 2.0, "leave_timeout": 3.0},
        {"checkpoint_every": "7", "keep_checkpoints": 1},
    ],
    ids=",".join,
)
def test_settings_of_how_a_run_runs_are_no_segment(
    run: RunDirectory, store: PreparedStore, settings: dict[str, Any]
) -> None:
    wanted = run.config().model_copy(update=settings)
    assert resume(run, wanted, store, wait=0)
    assert run.config() == wanted
    assert not changes(run)
    assert not (run.path / "segments").exists()


@pytest.mark.parametrize(
    ("settings", "recorded"),
    [
        ({"epochs": 6}, {"epochs": (4, 6)}),
        ({"epochs": 2}, {"epochs": (4, 2)}),
        ({"mode": "sync", "workers": 3}, {"mode": ("async", "sync"), "workers": (2, 3)}),
        ({"schedule": {"learning_rate": 0.05}}, {"schedule.learning_rate": (0.1, 0.05)}),
        ({"schedule": {"kind": "table", "table": [(2, 0.01)]}}, None),
        ({"optimizer": {"weight_decay": 0.1}, "gradient_clip": 1.0}, None),
        ({"augment": {"views": 2}, "wire": "bf16", "prefetch": 1}, None),
        ({"mode": "sync", "backup_workers": 1}, {"mode": ("async", "sync"), "backup_workers": (0, 1)}),
        ({"max_staleness": 0, "sync_epochs": 1.5}, {"max_staleness": (None, 0), "sync_epochs": (0.0, 1.5)}),
        (
            {"compensation": {"staleness_power": 1, "delay": "constant"}, "optimizer": {"momentum_per_worker": True}},
            None,
        ),
    ],
)
def test_changed_settings_are_recorded_as_a_segment(
    run: RunDirectory, store: PreparedStore, settings: dict[str, Any], recorded: dict[str, Any] | None
) -> None:
    before, wanted = run.config(), changed(run, **settings)
    assert resume(run, wanted, store, wait=0)
    assert run.config() == wanted
    (event,) = changes(run)
    assert event.version == 7
    if recorded:
        assert event.changed == recorded
    archived = RunDirectory(run.path / "segments" / "00000007").config()
    assert archived.model_copy(update={"name": before.name, "runs": before.runs}) == before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"seed": 1}, "seed 1 instead of 0: it decides which images are held out"),
        ({"model": "mlp3"}, "model mlp3 instead of mlp2: the checkpoint holds"),
        ({"validation_share": 0.5}, "validation_share 0.5 instead of 0.0: images that were trained on"),
        ({"image_size": 16}, "image_size 16 instead of None"),
        ({"local_steps": 2}, "local_steps 2 instead of 1: a lease would be of other batches"),
        ({"epochs": 1}, "--epochs 1: epoch 2 has begun"),
        ({"optimizer": {"kind": "adam"}}, "optimizer: it needs means and squares, the checkpoint holds momentum"),
    ],
)
def test_change_without_a_meaning_is_refused(
    run: RunDirectory, store: PreparedStore, settings: dict[str, Any], reason: str
) -> None:
    before, events = run.config(), list(read_events(run.events))
    with pytest.raises(PsysError, match=reason):
        resume(run, changed(run, **settings), store, wait=0)
    assert run.config() == before
    assert list(read_events(run.events)) == events


def test_epoch_that_has_begun_keeps_its_batch_size(run: RunDirectory, store: PreparedStore) -> None:
    resume(run, changed(run, batch_size=10), store, wait=0)
    assert run.config().earlier_batch_sizes == ((4, 2),)
    assert initial_ledger(run.config(), store).batches == 2 * PER_EPOCH + 2 * 2
    resume(run, changed(run, batch_size=5), store, wait=0)  # nothing was trained meanwhile
    assert run.config().earlier_batch_sizes == ((4, 2),)
    resume(run, changed(run, batch_size=4), store, wait=0)
    assert run.config().earlier_batch_sizes == ()
    resume(run, changed(run, batch_size=20), store, wait=0)
    save_checkpoint(run, store, 2 * PER_EPOCH + 1)
    resume(run, changed(run, batch_size=10), store, wait=0)
    assert run.config().earlier_batch_sizes == ((4, 2), (20, 3))
    restored: Ledger = initial_ledger(run.config(), store)
    checkpoint, _ = run.checkpoints(keep=3).newest()
    assert checkpoint is not None
    restored.restore(checkpoint.metadata.ledger)
    assert restored.epochs_done == 3


def finish(run: RunDirectory, store: PreparedStore, *events: RunEvent, batches: int = EPOCHS * PER_EPOCH) -> None:
    save_checkpoint(run, store, batches)
    with EventLog(run.events) as log:
        for event in (start(store.content_hash, "resume", 7, 20), update(batches), *events):
            log.write(event)


def test_complete_run_has_nothing_left_to_train(run: RunDirectory, store: PreparedStore) -> None:
    finish(run, store, end(unfinished=0))
    assert not resume(run, run.config(), store, wait=0)  # it is not evaluated
    run.write_result(RESULT)
    for same in (run.config(), changed(run, workers=5), changed(run, evaluate_every=2.0)):
        with pytest.raises(PsysError, match="complete and evaluated"):
            resume(run, same, store, wait=0)
        assert not resume(run, same, store, wait=0.1)  # the same command again is no error
    for wait in (0.0, 0.1):
        with pytest.raises(PsysError, match=r"learning_rate 0.1 → 0.01 would change nothing: --epochs extends"):
            resume(run, changed(run, schedule={"learning_rate": 0.01}), store, wait)
    assert not changes(run)
    assert run.complete


def test_complete_run_stays_complete_on_a_machine_that_changes_what_follows_the_workers(
    run: RunDirectory, store: PreparedStore
) -> None:
    run.update(resolved(run.config()))
    finish(run, store, end(unfinished=0))
    run.write_result(RESULT)
    more = resolved(reopened(changed(run, workers=16)))
    assert more.compensation.gap_aware
    assert not run.config().compensation.gap_aware
    assert not resume(run, more, store, wait=0.1)
    assert run.complete


def test_run_whose_last_version_was_not_saved_computes_it_again(run: RunDirectory, store: PreparedStore) -> None:
    finish(run, store, end(unfinished=0))
    shutil.rmtree(run.path / "checkpoints" / "00000020")
    assert resume(run, run.config(), store, wait=0)


def test_complete_run_without_checkpoints_stays_complete_and_cannot_be_extended(
    run: RunDirectory, store: PreparedStore
) -> None:
    finish(run, store, end(unfinished=0))
    run.write_result(RESULT)
    shutil.rmtree(run.path / "checkpoints")
    assert not resume(run, run.config(), store, wait=0.1)
    with pytest.raises(PsysError, match=r"the checkpoints of .* are gone"):
        resume(run, changed(run, epochs=6), store, wait=0)
    assert run.complete


def test_complete_run_is_extended_and_keeps_its_result(run: RunDirectory, store: PreparedStore) -> None:
    finish(run, store, end(unfinished=0))
    run.write_result(RESULT)
    assert resume(run, changed(run, epochs=6), store, wait=0)
    assert not run.complete
    assert (run.path / "result-00000020.json").exists()
    assert [event.changed for event in changes(run)] == [{"epochs": (4, 6)}]


def test_run_that_was_evaluated_when_it_was_stopped_goes_on(run: RunDirectory, store: PreparedStore) -> None:
    run.write_result(RESULT)
    assert resume(run, run.config(), store, wait=0)
    assert not run.complete
    assert not changes(run)


def test_run_stopped_early_goes_on_with_other_settings_only(run: RunDirectory, store: PreparedStore) -> None:
    early = StoppedEarly(best_version=5, best_accuracy=0.5, patience=1, seconds=1.0)
    finish(run, store, early, end(unfinished=5), batches=15)
    for same in (run.config(), changed(run, workers=5), changed(run, evaluate_every=2.0)):
        assert not resume(run, same, store, wait=0)
    assert resume(run, changed(run, schedule={"learning_rate": 0.01}), store, wait=0)


def test_run_that_was_killed_goes_on(run: RunDirectory, store: PreparedStore) -> None:
    with EventLog(run.events) as log:
        log.write(start(store.content_hash, "resume", 7, 20))
    assert resume(run, run.config(), store, wait=0)


def test_damaged_newest_checkpoint_is_named(run: RunDirectory, store: PreparedStore) -> None:
    (run.path / "checkpoints" / "00000009").mkdir(parents=True)
    with pytest.raises(PsysError, match=r"00000009.*; remove it to resume from .*00000007"):
        resume(run, run.config(), store, wait=0)


def test_other_store_is_refused(run: RunDirectory, store: PreparedStore, small_store: PreparedStore) -> None:
    before = run.config()
    with pytest.raises(PsysError, match=r"is not the store that .* was trained on: name that one with --store"):
        resume(run, changed(run, store=small_store.path), small_store, wait=0)
    assert run.config() == before


def test_run_that_another_process_writes_is_refused(run: RunDirectory, store: PreparedStore) -> None:
    with EventLog(run.events), pytest.raises(PsysError, match="still going on"):
        resume(run, run.config(), store, wait=0)
