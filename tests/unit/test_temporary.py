"""Directories of temporary files that cannot be used, or whose paths are too long for sockets."""

import tempfile
from pathlib import Path

import pytest

from psys.errors import PsysError
from psys.temporary import check_temporary_directory, folder_for_sockets


@pytest.mark.parametrize(("named", "reason"), [("none", "No such file"), ("file", "Not a directory")])
def test_tmpdir_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / named))
    with pytest.raises(PsysError, match=rf"TMPDIR={tmp_path / named}: {reason}.*; set TMPDIR to"):
        check_temporary_directory()


def test_tmpdir_that_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for named in ("", str(tmp_path)):
        monkeypatch.setenv("TMPDIR", named)
        check_temporary_directory()
    assert not list(tmp_path.iterdir())


def test_sockets_of_a_long_path_lie_in_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 66)
    assert folder_for_sockets(40) == tempfile.tempdir
    assert folder_for_sockets(41) == "/tmp"
