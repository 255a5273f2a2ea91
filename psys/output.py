"""Standard output and standard error that no program depends on: what cannot be written is dropped."""

import contextlib
import errno
import io
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

_were_closed: set[int] = set()  # file descriptors that were closed when the process began
_STALLED_SECONDS = 0.1  # a pipe or terminal that takes nothing for this long loses what was written to it


def protect_output() -> None:
    """Make this process independent of its standard output and standard error; the first call of every process.

    Writing to sys.stdout and sys.stderr then raises nothing and does not wait for a reader: what a full disk, a closed
    pipe, a terminal that went away or a reader that does not read cannot take is dropped. File descriptors 0 to 2 that
    were closed are opened on the null device, so that no other file takes their numbers. A stream that the program has
    replaced by another one stays.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            _were_closed.add(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or (_descriptor_of(stream) == descriptor and _writer_of(stream) is None):
            setattr(sys, name, _stream(descriptor, f"<{name}>", getattr(stream, "encoding", "utf-8")))


@contextlib.contextmanager
def stdout_is_the_result() -> Iterator[None]:
    """What is printed within the block is what the user asked for: writing waits for a reader that is slow.

    Raises OSError at the end of the block if standard output could not be written. A reader that has read enough and
    went away, as `head` does, is no error.
    """
    writer = _writer_of(sys.stdout)
    if writer is None:
        yield
        return
    writer.patience, writer.error = None, None
    try:
        yield
        sys.stdout.flush()
    finally:
        writer.patience = _STALLED_SECONDS
    if 1 in _were_closed:
        raise OSError(errno.EBADF, "cannot write standard output: it is closed")
    if writer.error and writer.error.errno != errno.EPIPE:
        raise OSError(writer.error.errno, f"cannot write standard output: {writer.error.strerror}")


class _Writer(io.RawIOBase):
    """Writes to a file descriptor, and drops what cannot be written within `patience` seconds (None: waits).

    `error` is the latest reason for which something was dropped.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self.patience: float | None = _STALLED_SECONDS
        self.error: OSError | None = None
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        try:
            with _never_blocking(self._descriptor) as descriptor:
                self._write_all(descriptor, memoryview(data))
        except OSError as error:
            self.error = error
        return len(data)

    def _write_all(self, descriptor: int, data: memoryview) -> None:
        writable = select.poll()
        writable.register(descriptor, select.POLLOUT)
        patience, began = self.patience, time.monotonic()
        while data:
            left = None if patience is None else max(0.0, began + patience - time.monotonic())
            if not writable.poll(None if left is None else left * 1000) or left == 0.0:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            # No more at once than a pipe that is ready takes without waiting: not every pipe can be opened again.
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]


def _stream(descriptor: int, name: str, encoding: str) -> io.TextIOWrapper:
    # No BufferedWriter between the two: Python aborts at its end if a daemon thread has that one's lock.
    writer: Any = _Writer(descriptor, name)
    return io.TextIOWrapper(writer, encoding=encoding, errors="backslashreplace", line_buffering=True)


def _descriptor_of(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):  # an object of another program need not have one
        return None


def _writer_of(stream: Any) -> _Writer | None:
    writer = getattr(stream, "buffer", None)
    return writer if isinstance(writer, _Writer) else None


@contextlib.contextmanager
def _never_blocking(descriptor: int) -> Iterator[int]:
    """A descriptor of the same pipe or terminal, which never blocks, where it can be opened again; else `descriptor`.

    The descriptor itself stays as it is: other programs write to the same open file, and expect it to block.
    """
    if not (os.isatty(descriptor) or stat.S_ISFIFO(os.fstat(descriptor).st_mode)):
        yield descriptor
        return
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        yield descriptor
        return
    try:
        yield own
    finally:
        os.close(own)
