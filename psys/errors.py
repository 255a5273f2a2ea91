"""What a user reads on standard error: messages, and errors that say what is wrong, where, and what to do about it."""

import contextlib
import errno
import os
import resource
import sys
from collections.abc import Iterator

ERROR = "psys: error: "
"""how the line of a PsysError begins"""
TOO_MANY_OPEN_FILES = "too many open files: raise the limit with `ulimit -n`"


class PsysError(Exception):
    """Something the user must mend (a setting, a file, a port): shown as one line, the process exits with code 2."""


class LostServerError(PsysError):
    """Another server of the run has ended or cannot be reached, and its slice of the parameters is lost."""

    def __init__(self, message: str, patience: float = 0.0) -> None:
        super().__init__(message)
        self.patience = patience
        """seconds for which the run's settings let a server look for the run again"""


def say(text: str) -> None:
    """Show the user a line on standard error. If that cannot be written, the line is lost."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(f"psys: {text}", file=sys.stderr, flush=True)


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line: without the number of an error of the operating system, and with its file."""
    if not isinstance(error, OSError) or not error.strerror:
        return " ".join(str(error).split()) or type(error).__name__
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TOO_MANY_OPEN_FILES
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def allow_many_open_files() -> None:
    """Let this process open as many files as the system lets it: a server has a connection to every worker."""
    with contextlib.suppress(OSError, ValueError):  # a limit that cannot be raised may still be enough
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Turn a PsysError, or what the operating system refused, into one line and exit code 2; an interrupt into 130."""
    try:
        yield
    except (PsysError, OSError) as error:
        say(f"error: {reason_of(error)}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def shown_once() -> Iterator[None]:
    """All ranks of torchrun fail alike within the block: a host's first rank shows a PsysError, the others are silent.

    The others exit with code 2.
    """
    try:
        yield
    except PsysError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            sys.exit(2)
        raise
