"""Processes of a local run, forked from one that has imported all they need: each is there within milliseconds.

That one is the forkserver of Python's multiprocessing. It runs no thread and touches no device, so forking it is safe;
this process is not like that.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_FORKING = multiprocessing.get_context("forkserver")
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # of linux/prctl.h
# What a terminal, torchrun or `timeout` sends to the whole group that the launcher is in.
_FOR_THE_LAUNCHER = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_KERNEL = ctypes.CDLL(None)


def prepare_children() -> None:
    """Begin to import, in the process that children are forked from, while this one goes on."""
    _FORKING.set_forkserver_preload(["psys.cluster.roles"])
    with _forkserver_deaf():
        forkserver.ensure_running()


def start_child(
    name: str, function: Callable[..., None], *arguments: object, log: Path | None = None
) -> ForkServerProcess:
    """A process called `name` that calls `function`; what it prints is appended to `log`, if given."""
    # Daemonic: should this process end before its children, it sends them SIGTERM instead of waiting for them.
    child = _FORKING.Process(target=_run, args=(name, log, function, arguments), daemon=True)
    with _forkserver_deaf():  # for it is started again, should it have died
        child.start()
    return child


def dismiss_children() -> None:
    """End what children were forked from, and see it gone. No child may be left."""
    # Python itself leaves that to the end of this process, which others would take for the end of all.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def end_with_parent(parent: int) -> None:
    """From now on this process, or the program that it becomes, is killed when the thread that started it ends.

    `parent` is the number of that thread's process; if it has ended already, so does this one.
    """
    if sys.platform == "linux":
        _KERNEL.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def is_orphan() -> bool:
    """Whether whoever started this process with `start_child` has gone."""
    parent = multiprocessing.parent_process()
    return parent is None or not parent.is_alive()


def terminate_as_orphan() -> None:
    """From now on this process gets SIGTERM when whoever started it has gone: nobody else would end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="orphanage", daemon=True).start()


@contextlib.contextmanager
def _forkserver_deaf() -> Iterator[None]:
    """A forkserver that is started meanwhile hears no signal that is for the launcher, who ends all others in order."""
    resource_tracker.ensure_running()  # if it had to be started within, it would let signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_LAUNCHER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(name: str, log: Path | None, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    parent = os.getppid()
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_LAUNCHER)
    if sys.platform == "linux":
        _KERNEL.prctl(_PR_SET_NAME, name.encode())
    # Who starts children hears of their end from the forkserver: without it, they would count as dead and live.
    end_with_parent(parent)
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    function(*arguments)
