"""A server or a worker of a run as a program, which a NodeProcess starts."""

import contextlib
import os
import sys
from pathlib import Path

from psys.cluster.child import ExitCode
from psys.cluster.roles import serve_shard
from psys.cluster.worker import LeaveRequested, leave_at_signals, work
from psys.errors import LostServerError, exit_with_message, say
from psys.output import protect_output


def main(role: str, number: str, host: str, port: str, threads: str, store: str) -> None:
    """Be the server or worker until the run ends or SIGTERM. Exits with an ExitCode; the token is in PSYS_TOKEN."""
    protect_output()
    with exit_with_message(), contextlib.suppress(LeaveRequested):
        leave_at_signals()
        token = os.environ["PSYS_TOKEN"]
        if role == "worker":
            work(host, int(port), int(threads), token, Path(store))
            return
        try:
            serve_shard(host, int(port), token, int(number))
        except LostServerError as error:
            say(str(error))
            sys.exit(ExitCode.SERVER_LOST)


if __name__ == "__main__":
    main(*sys.argv[1:])
