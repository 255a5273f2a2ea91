"""Where temporary files and sockets lie."""

import os
import tempfile

from psys.errors import PsysError

_SOCKET_PATH_BYTES = 107  # of a Unix socket's path on Linux


def check_temporary_directory() -> None:
    """Raises PsysError if no temporary files can be made where TMPDIR says, or anywhere if it says nothing."""
    named = os.environ.get("TMPDIR")
    try:
        tempfile.TemporaryFile(dir=named or None).close()
    except OSError as error:
        where = f" in TMPDIR={named}" if named else ""
        raise PsysError(
            f"no temporary files can be made{where}: {error.strerror}; set TMPDIR to a directory that can be written"
        ) from None


def folder_for_sockets(below: int) -> str:
    """The directory of temporary files, or /tmp if there the path of a socket, `below` bytes longer, were too long."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) + below <= _SOCKET_PATH_BYTES else "/tmp"
