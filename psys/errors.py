"""What a user reads on standard error: messages, and errors that say what is wrong, where, and what to do about it."""

import contextlib
import sys
from collections.abc import Iterator


class PsysError(Exception):
    """Something the user must mend (a setting, a file, a port): shown as one line, the process exits with code 2."""


class LostServerError(PsysError):
    """Another server of the run has ended or cannot be reached, and its slice of the parameters is lost."""

    def __init__(self, message: str, patience: float = 0.0) -> None:
        super().__init__(message)
        self.patience = patience
        """seconds for which the run's settings let a server look for the run again"""


def say(text: str) -> None:
    """Show the user a line on standard error."""
    print(f"psys: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Turn a PsysError, or what the operating system refused, into one line and exit code 2; an interrupt into 130."""
    try:
        yield
    except (PsysError, OSError) as error:
        say(f"error: {' '.join(str(error).split())}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
