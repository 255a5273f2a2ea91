"""A cleanup process: it ends the remaining child processes and deletes the folder of a parent that has ended."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

CLEANUP_SECONDS = 5.0
_WAIT_SECONDS = 0.1  # short: a killed process that its parent does not reap never counts as ended
MARK = "PSYS_GUARDED"  # environment variable of guarded processes; the process tree may change at any time


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Delete `folder` and kill all processes started within the block when the block or this process ends."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # it must not receive SIGINT from the terminal
    )
    os.environ[MARK] = str(folder)
    try:
        yield
    finally:
        del os.environ[MARK]
        process.communicate()


def _main(folder: str) -> None:
    sys.stdin.read()  # returns when the parent has ended
    deadline = time.monotonic() + CLEANUP_SECONDS
    while (left := _marked(folder)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, _WAIT_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


def _marked(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # the environment of other users' processes is not readable
            if process.environ().get(MARK) == folder or _is_ray_process_of(folder, process):
                found.append(process)
    return found


def _is_ray_process_of(folder: str, process: psutil.Process) -> bool:
    # Ray sets process titles, which may overwrite the environment; the processes' log files are in the folder.
    titled = "".join(process.cmdline()).startswith("ray::")
    within = os.path.realpath(folder) + os.sep
    return titled and any(file.path.startswith(within) for file in process.open_files())


if __name__ == "__main__":
    _main(sys.argv[1])
