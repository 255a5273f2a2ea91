"""The forkserver that children are forked from, in a program that may use multiprocessing itself."""

import sys
from multiprocessing import forkserver
from typing import Any

import psutil

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
