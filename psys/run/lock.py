"""The right to start, change and end a run or a study, which one process at a time has."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from psys.errors import PsysError, say
from psys.files import lock_file

_NAME_BYTES = 256


@contextlib.contextmanager
def run_lock(folder: Path, wait: float = 0.0, what: str = "run") -> Iterator[None]:
    """Hold the lock of the run in `folder` within the block; `what` messages call it.

    The operating system releases the lock of a process that dies. Raises PsysError if another process, of this host or
    of one that shares the folder, still holds the lock after `wait` seconds, or if the folder cannot be written.
    """
    path = folder / "lock"
    try:
        file = _acquire(path, wait, what)
    except OSError as error:
        raise PsysError(f"cannot lock the {what} in {folder}: {error.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # on a full disk others are not told who has the lock
            os.truncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if _is_at(path, file):  # the folder may have been removed, and made again by another start
            path.unlink()
        os.close(file)


def _acquire(path: Path, wait: float, what: str) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # a start that failed may have removed it
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not lock_file(file):
            holder = os.read(file, _NAME_BYTES).decode(errors="replace") or "another process"
            if wait:
                say(f"waiting up to {wait:g} s for the end of {holder}, which has the {what} in {path.parent}")
            if not wait or not lock_file(file, wait):
                os.close(file)
                raise PsysError(f"{path.parent}: the {what} is still going on, in {holder}")
        if _is_at(path, file):
            return file
        os.close(file)  # removed by the process that had the lock before


def _is_at(path: Path, file: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
