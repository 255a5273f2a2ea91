"""Checkpoints: written, found again, replaced, and restored to another number of servers."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from psys.ps.messages import Lease, Reader, Step, Update
from psys.ps.slots import Slot, slots_in
from psys.ps.store import SliceState
from psys.run.assembly import initial_model, initial_slice, layout_of
from psys.run.checkpoint import Checkpoints, concatenate_states, load, state_of_slice
from psys.run.config import RunConfig
from tests.support.checkpoints import (
    MANIFEST,
    STATE,
    file_names,
    is_intact,
    metadata_of,
    random_vector,
    saved,
    state_of,
    states_equal,
)


def test_saved_checkpoint_is_found_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.newest() == (None, [])
    path = checkpoints.save(metadata_of(3), state_of(3))
    assert file_names(path) == [MANIFEST, STATE]
    found, refused = checkpoints.newest()
    assert is_intact(found, 3)
    assert found is not None
    assert found.path == path
    assert refused == []


def test_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = saved(tmp_path, 3).folder / "00000003"
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}


def test_latest_checkpoints_are_kept_and_roll_back_removes_later_versions(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 9, 10, 11, keep=3)
    assert file_names(tmp_path) == ["00000009", "00000010", "00000011"]
    checkpoints.roll_back(9)
    assert file_names(tmp_path) == ["00000009"]


def test_newest_checkpoint_up_to_a_version(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2, 9, 10)
    assert [is_intact(checkpoints.newest(version)[0], expected) for version, expected in ((10, 10), (9, 9), (8, 2))]
    remove_state(tmp_path / "00000010")
    assert checkpoints.newest(9)[1] == []
    assert checkpoints.newest(1) == (None, [])


def test_checkpoint_of_the_same_version_is_replaced(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    for workers in range(3):
        checkpoints.save(metadata_of(2).model_copy(update={"workers_named": workers}), state_of(2))
        found, _ = checkpoints.newest()
        assert found is not None
        assert found.metadata.workers_named == workers
    assert file_names(tmp_path) == ["00000001", "00000002"]


def remove_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def remove_state(path: Path) -> None:
    (path / STATE).unlink()


def cut_manifest(path: Path) -> None:
    os.truncate(path / MANIFEST, (path / MANIFEST).stat().st_size - 2)


def cut_state(path: Path) -> None:
    os.truncate(path / STATE, (path / STATE).stat().st_size - 1)


def empty_both(path: Path) -> None:
    os.truncate(path / STATE, 0)
    os.truncate(path / MANIFEST, 0)


def enlarge_manifest(path: Path) -> None:
    os.truncate(path / MANIFEST, 65 << 20)  # a sparse file


def copy_state_of_version_1(path: Path) -> None:
    (path / STATE).write_bytes((path.with_name("00000001") / STATE).read_bytes())


def replace_in_manifest(path: Path, before: str, after: str) -> None:
    content = (path / MANIFEST).read_text(encoding="utf-8")
    assert before in content
    (path / MANIFEST).write_text(content.replace(before, after), encoding="utf-8")


def raise_version(path: Path) -> None:
    replace_in_manifest(path, '"version": 3', '"version": 4')


def raise_format(path: Path) -> None:
    replace_in_manifest(path, '"format": 2', '"format": 3')


def remove_format(path: Path) -> None:
    replace_in_manifest(path, '"format": 2, ', "")


def write_list_as_manifest(path: Path) -> None:
    (path / MANIFEST).write_text("[]", encoding="utf-8")


def replace_folder_by_file(path: Path) -> None:
    remove_manifest(path)
    remove_state(path)
    path.rmdir()
    path.write_text("a file", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_manifest, "is torn: No such file"),
        (remove_state, "is torn: No such file"),
        (replace_folder_by_file, "is torn: Not a directory"),
        (cut_manifest, "is torn: manifest.json is not a JSON object"),
        (empty_both, "is torn: manifest.json is not a JSON object"),
        (write_list_as_manifest, "is torn: manifest.json is not a JSON object"),
        (enlarge_manifest, "manifest is far too large"),
        (cut_state, "is damaged: the hash of state.safetensors is not the one in its manifest"),
        (copy_state_of_version_1, "is damaged: the hash of state.safetensors is not the one in its manifest"),
        (raise_version, "is damaged: manifest.json was changed"),
        (raise_format, "was written by another version of psys: it has format '3', this version reads format 2"),
        (remove_format, "was written by another version of psys: it has format '1', this version reads format 2"),
    ],
)
def test_unusable_checkpoints_are_skipped_and_named(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "00000003")
    remove_state(tmp_path / "00000002")
    found, refused = checkpoints.newest()
    assert is_intact(found, 1)
    for name, why in zip(["00000003", "00000002"], refused, strict=True):
        assert str(tmp_path / name) in why
    assert reason in refused[0]
    checkpoints.roll_back(1)
    checkpoints.save(metadata_of(2), state_of(2))
    assert is_intact(checkpoints.newest()[0], 2)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, keep=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "2.txt").write_text("3", encoding="utf-8")
    checkpoints.save(metadata_of(2), state_of(2))
    assert checkpoints.newest()[1] == []
    assert file_names(tmp_path) == ["00000002", "2.txt", "notes"]


# Another number of servers.


class OneBuffer:
    """The buffer of the only worker."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots

    def gradients(self, worker: str) -> list[Slot]:
        return self.slots

    def parameters(self, worker: str) -> list[Slot]:
        return self.slots

    def release(self, worker: str) -> None: ...


class Servers:
    """All slices of a run on some servers, from the start or from a checkpoint, without processes."""

    def __init__(self, optimizer: str, count: int, checkpoint: SliceState | None) -> None:
        config = RunConfig.model_validate(
            {"model": "resnet8", "servers": count, "optimizer": {"kind": optimizer, "weight_decay": 1e-3}}
        )
        model = initial_model(config, classes=10)
        layout = layout_of(config, model)
        self.parameters, self.statistics = len(model.parameters), len(model.statistics)
        self._buffer = OneBuffer(list(slots_in(torch.zeros(layout.nbytes, dtype=torch.uint8), layout)))
        self._slices = [initial_slice(config, model, number) for number in range(count)]
        self._spans = layout.slices
        self._steps = 0
        if checkpoint:
            for number, (each, span) in enumerate(zip(self._slices, self._spans, strict=True)):
                each.store.restore(state_of_slice(checkpoint, span, number))

    def update(self, version: int) -> None:
        """Apply a gradient and statistics that depend on the version only."""
        gradient = random_vector(100 + version, self.parameters)
        slot = self._buffer.slots[0]
        slot.statistics.copy_(random_vector(200 + version, self.statistics))
        for payload, span in zip(slot.gradient, self._spans, strict=True):
            payload.view(torch.float32).copy_(gradient[span])
        lease = Lease(version - 1, 0, "worker0", version - 1, 0)
        self._apply(updates=(Update(version, (lease,), (1.0,), (0,), 0.05, 0.5, 0.0, (1.0,)),))

    def state(self) -> SliceState:
        number = self._apply(keep=True)
        return concatenate_states([each.kept(number) for each in self._slices])

    def _apply(self, updates: tuple[Update, ...] = (), keep: bool = False) -> int:
        readers = {"worker0": Reader(0, 0.0)} if updates else {}
        step = Step(self._steps, updates, readers, keep="checkpoint" if keep else None)
        self._steps += 1
        for each in self._slices:
            each.apply([step], self._buffer)
        return step.number


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam"])
def test_run_resumed_on_another_number_of_servers_computes_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    one_server = Servers(optimizer, 1, None)
    checkpoint, version = None, 0
    for count in (3, 1, 2, 5):
        servers = Servers(optimizer, count, checkpoint)
        for _ in range(2):
            version += 1
            one_server.update(version)
            servers.update(version)
        path = checkpoints.save(metadata_of(version), servers.state())
        checkpoint = load(path).state
        assert states_equal(checkpoint, one_server.state())


def test_state_of_a_slice_owns_its_memory() -> None:
    """A view would be sent, and saved, as the whole vector."""
    part = state_of_slice(state_of(1), slice(4, 12), 1)
    assert len(part.statistics) == 0
    for vector in (part.parameters, *part.optimizer.values()):
        assert vector.untyped_storage().nbytes() == 8 * vector.itemsize
