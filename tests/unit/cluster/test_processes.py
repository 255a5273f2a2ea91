"""The forkserver that children are forked from, in a program that may use multiprocessing itself."""

import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest

from psys.cluster.processes import forkserver_running, start_child

SERVER: Any = forkserver._forkserver


def test_forkserver_ends_with_the_last_block() -> None:
    assert SERVER._forkserver_pid is None
    preloaded = SERVER._preload_modules
    with forkserver_running():
        process = psutil.Process(SERVER._forkserver_pid)
        with forkserver_running():
            pass
        assert SERVER._forkserver_pid == process.pid
    assert not process.is_running()
    assert SERVER._preload_modules == preloaded


def test_long_directory_of_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with forkserver_running():
        child = start_child("psys-test", sys.exit, 7)
        child.join()
        assert child.exitcode == 7
        sockets = Path(SERVER._forkserver_address).parent
        assert sockets.parent == Path("/tmp")
    assert not sockets.exists()


@pytest.mark.parametrize("log", ["/dev/full", "/no/such/folder/log"])
def test_child_whose_log_cannot_be_written_does_its_work(log: str) -> None:
    with forkserver_running():
        child = start_child("psys-test", print, "a line", log=Path(log))
        child.join()
        assert child.exitcode == 0


def test_forkserver_of_the_program_keeps_running() -> None:
    forkserver.ensure_running()
    try:
        pid = SERVER._forkserver_pid
        with forkserver_running():
            child = start_child("psys-test", sys.exit, 7)
            child.join()
            assert child.exitcode == 7
        assert SERVER._forkserver_pid == pid
        assert psutil.Process(pid).is_running()
    finally:
        SERVER._stop()


def test_main_module_is_as_before_after_a_start() -> None:
    main = sys.modules["__main__"]
    with forkserver_running():
        start_child("psys-test", print).join()
    assert sys.modules["__main__"] is main
