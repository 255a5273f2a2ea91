"""A process that is killed, or that runs out of disk space, while it writes a checkpoint.

Each failure happens in a forked child process.
"""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from psys.run.checkpoint import CheckpointMetadata, Checkpoints, load
from tests.support.checkpoints import (
    MANIFEST,
    STATE,
    exit_code_of_child,
    file_names,
    is_intact,
    metadata_of,
    saved,
    state_of,
    states_equal,
)

KILLED = 77  # exit code of a child that ended itself


def killed_at(call: int, action: Callable[[], object]) -> bool:
    """Do `action` in a child that ends before its file system call of that number; whether it made so many calls."""

    def act_and_end() -> None:
        left = call

        def count(event: str, arguments: object) -> None:
            nonlocal left
            if event == "open" or event.startswith(("os.", "shutil.")):
                if not left:
                    os._exit(KILLED)
                left -= 1

        sys.addaudithook(count)
        action()

    code = exit_code_of_child(act_and_end)
    assert code in (0, KILLED)
    return code == KILLED


def after_each_kill(tmp_path: Path, new: CheckpointMetadata) -> Iterator[tuple[Checkpoints, bool]]:
    """Save `new` after versions 1 and 2, of which two are kept, and kill the process at every possible call.

    Yields the checkpoints after each kill (at last: after no kill), and whether the newest is the new one.
    """
    call, new_found = 0, False
    killed = True
    while killed:
        checkpoints = saved(tmp_path / str(call), 1, 2, keep=2)
        killed = killed_at(call, partial(checkpoints.save, new, state_of(new.version)))
        found, refused = checkpoints.newest()
        assert found is not None
        assert refused == []
        assert found.metadata == new or (found.metadata == metadata_of(2) and not new_found)
        assert states_equal(found.state, state_of(found.metadata.version))
        new_found = found.metadata == new
        yield checkpoints, new_found
        call += 1
    assert new_found
    assert call > 15


def test_kill_while_saving_leaves_the_previous_or_the_new_checkpoint(tmp_path: Path) -> None:
    for checkpoints, new_found in after_each_kill(tmp_path, metadata_of(3)):
        checkpoints.save(metadata_of(4), state_of(4))
        assert is_intact(checkpoints.newest()[0], 4)
        assert file_names(checkpoints.folder) == ["00000003" if new_found else "00000002", "00000004"]


def test_kill_while_replacing_leaves_the_replaced_or_the_new_checkpoint(tmp_path: Path) -> None:
    for checkpoints, _ in after_each_kill(tmp_path, metadata_of(2).model_copy(update={"workers_named": 7})):
        checkpoints.save(metadata_of(2), state_of(2))
        assert is_intact(checkpoints.newest()[0], 2)
        checkpoints.save(metadata_of(3), state_of(3))
        assert is_intact(checkpoints.newest()[0], 3)
        assert file_names(checkpoints.folder) == ["00000002", "00000003"]


@pytest.mark.parametrize("length", [0, 1, 8, 100, None])
def test_folder_being_written_is_not_a_checkpoint(tmp_path: Path, length: int | None) -> None:
    """As a power cut may leave it: files of any length, the manifest first."""
    checkpoints = saved(tmp_path, 1, 2)
    aside = (tmp_path / "00000002").rename(tmp_path / ".writing")
    if length is not None:
        os.truncate(aside / STATE, length)
    found, refused = checkpoints.newest()
    assert is_intact(found, 1)
    assert refused == []
    checkpoints.save(metadata_of(2), state_of(2))
    assert file_names(tmp_path) == ["00000001", "00000002"]
    assert is_intact(checkpoints.newest()[0], 2)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("limit", [0, 100, 400, 600])
def test_full_disk_raises_oserror_and_keeps_earlier_checkpoints(tmp_path: Path, limit: int, version: int) -> None:
    checkpoints = saved(tmp_path, 1, 2, keep=2)
    sizes = [(tmp_path / "00000002" / name).stat().st_size for name in (STATE, MANIFEST)]
    assert 400 < sizes[0] < 600 < sizes[1]  # the last limit stops the manifest, the others the state

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(metadata_of(version), state_of(version))

    assert exit_code_of_child(save) == 0
    assert file_names(tmp_path) == ["00000001", "00000002"]
    assert is_intact(load(tmp_path / "00000001"), 1)
    assert is_intact(checkpoints.newest()[0], 2)
    checkpoints.save(metadata_of(3), state_of(3))
    assert is_intact(checkpoints.newest()[0], 3)


def test_folder_that_cannot_be_made_raises_oserror(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file", encoding="utf-8")
    with pytest.raises(OSError, match="Not a directory"):
        Checkpoints(tmp_path / "checkpoints", 3).save(metadata_of(1), state_of(1))
