"""Child processes of a local run, forked from a process that has imported what they need: each starts in milliseconds.

That process is the forkserver of Python's multiprocessing. It runs no threads and uses no device: forking it is safe.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from psys.errors import reason_of, say
from psys.output import protect_output
from psys.temporary import folder_for_sockets

_FORKSERVER = multiprocessing.get_context("forkserver")
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # of linux/prctl.h
# A terminal, torchrun or `timeout` sends these to the whole process group of the launcher, which stops its children.
_LAUNCHER_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_SOCKET_BYTES = 40  # of "/psys-XXXXXXXX/listener-XXXXXXXX"
_KERNEL = ctypes.CDLL(None)

_lock = threading.Lock()  # for the forkserver and the names below
_blocks = 0  # of forkserver_running, which are open now
_cleanup = contextlib.ExitStack()  # what stops the forkserver


def leave_signals() -> tuple[signal.Signals, ...]:
    """The signals that tell a process to save and end: SIGTERM, and SIGHUP unless it is ignored, as under `nohup`."""
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if nohup else (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def forkserver_running() -> Iterator[None]:
    """Run the forkserver within the block, at whose end the children started in it must have ended.

    The forkserver imports what children need while this process goes on. Blocks of several threads share it. If the
    program has started a forkserver itself, children are forked from that one, and it keeps running.
    """
    global _blocks
    with _lock:
        if _blocks == 0:
            _start_forkserver()
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                _cleanup.close()


def start_child(
    name: str, function: Callable[..., None], *arguments: object, log: Path | None = None
) -> ForkServerProcess:
    """Start a process called `name` that calls `function`. Its output is appended to `log`, if given."""
    # Daemonic: if this process ends first, multiprocessing sends its children SIGTERM instead of waiting for them.
    child = _FORKSERVER.Process(target=_run, args=(name, log, function, arguments), daemon=True)
    # The signals are blocked because start() starts the forkserver again if it has died.
    with _lock, _launcher_signals_blocked(), _main_module_hidden():
        child.start()
    return child


def kill_when_parent_ends(parent: int) -> None:
    """From now on the kernel kills this process, or the program it executes, when the thread that started it ends.

    `parent` is the process id of that thread's process. If it has ended already, this process is killed at once.
    """
    if sys.platform == "linux":
        _KERNEL.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def parent_ended() -> bool:
    """Whether the process that called `start_child` has ended."""
    parent = multiprocessing.parent_process()
    return parent is None or not parent.is_alive()


def terminate_when_parent_ends() -> None:
    """From now on this process gets SIGTERM when the process that called `start_child` has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="wait for parent", daemon=True).start()


def _start_forkserver() -> None:
    server: Any = forkserver._forkserver
    tracker: Any = resource_tracker._resource_tracker
    if server._forkserver_pid is not None:
        return
    process: Any = multiprocessing.current_process()
    config = process._config
    if "tempdir" not in config:  # multiprocessing's directory for sockets
        folder = tempfile.TemporaryDirectory(prefix="psys-", dir=folder_for_sockets(_SOCKET_BYTES))
        _cleanup.callback(config.pop, "tempdir")
        config["tempdir"] = _cleanup.enter_context(folder)
    # Python stops both only when this process has ended, and whoever waits for its end would still see them.
    if tracker._pid is None:
        _cleanup.callback(tracker._stop)
    _cleanup.callback(server._stop)
    _cleanup.callback(_FORKSERVER.set_forkserver_preload, server._preload_modules)
    _FORKSERVER.set_forkserver_preload(["psys.cluster.child"])
    with _launcher_signals_blocked():
        forkserver.ensure_running()


@contextlib.contextmanager
def _launcher_signals_blocked() -> Iterator[None]:
    """A forkserver started within the block inherits the signal mask: it outlives its children."""
    resource_tracker.ensure_running()  # it unblocks the signals when it starts, so it starts before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LAUNCHER_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """A child started within the block does not import the main module of this program.

    multiprocessing imports it in every child, for functions and classes that it may define. A script without
    `if __name__ == "__main__"` would train again. Other threads cannot pickle objects of `__main__` within the block.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _run(name: str, log: Path | None, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    parent = os.getppid()
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LAUNCHER_SIGNALS)
    if sys.platform == "linux":
        _KERNEL.prctl(_PR_SET_NAME, name.encode())
    # The forkserver reports the exit codes of children: without it the supervisor would take a living child for dead.
    kill_when_parent_ends(parent)
    protect_output()
    if log is not None:
        _write_output_to(log)
    function(*arguments)


def _write_output_to(log: Path) -> None:
    try:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:  # the output goes where the launcher's goes
        say(f"cannot write {log}: {reason_of(error)}")
        return
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
