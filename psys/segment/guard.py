"""A process that outlives its parent, however that ends, by the moment it takes to end what the parent left behind."""

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

PATIENCE_SECONDS = 5.0
_PASS_SECONDS = 0.1  # no longer: a killed process whose parent does not reap it never counts as gone
MARK = "PSYS_GUARDED"  # in the environment of what is to end; who is its child may change at any moment


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """`folder` and all processes started within the block are gone when the block or this process ends."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.environ[MARK] = str(folder)
    try:
        yield
    finally:
        del os.environ[MARK]
        process.communicate()


def _main(folder: str) -> None:
    sys.stdin.read()  # it ends with the parent
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (left := _marked(folder)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, _PASS_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


def _marked(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # others' processes do not show theirs
            if process.environ().get(MARK) == folder or _has_covered_its_mark(process, folder):
                found.append(process)
    return found


def _has_covered_its_mark(process: psutil.Process, folder: str) -> bool:
    # Ray's processes take titles, which may lie over their environment; their logs are in the folder.
    titled = "".join(process.cmdline()).startswith("ray::")
    within = os.path.realpath(folder) + os.sep
    return titled and any(file.path.startswith(within) for file in process.open_files())


if __name__ == "__main__":
    _main(sys.argv[1])
