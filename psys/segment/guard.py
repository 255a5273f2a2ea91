"""A process that outlives its parent, however that ends, by the moment it takes to end what the parent left behind."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PATIENCE_SECONDS = 5.0


class Guard:
    """Told of processes and of a folder that must not be left behind."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self.folder = folder

    def watch_children(self) -> None:
        """The processes that this one has started so far, and theirs, shall end with it."""
        assert self._process.stdin is not None
        for child in psutil.Process().children(recursive=True):
            if child.pid != self._process.pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._process.stdin.write(f"{child.pid} {child.create_time()!r}\n")
        self._process.stdin.flush()


@contextmanager
def guarded(folder: Path) -> Iterator[Guard]:
    """A guard for the length of a block; `folder` and what it watches are gone when the block or this process ends."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder)],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield Guard(process, folder)
    finally:
        process.communicate()


def _main(folder: Path) -> None:
    watched = []
    for line in sys.stdin:  # it ends with the parent
        pid, created = line.split()
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if process.create_time() == float(created):
                watched.append(process)
    for process in watched:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(watched, PATIENCE_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
