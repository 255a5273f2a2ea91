"""The one exception a user meets: what is wrong, where, and what to do about it."""

import contextlib
import sys
from collections.abc import Iterator


class PsysError(Exception):
    """Something the user must mend (a setting, a file, a port): shown as one line, the process exits with code 2."""


class LostServerError(PsysError):
    """Another server of the run is gone, and its part of the parameters with it."""


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Turn a PsysError, or what the operating system refused, into one line and exit code 2; an interrupt into 130."""
    try:
        yield
    except (PsysError, OSError) as error:
        print(f"psys: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
