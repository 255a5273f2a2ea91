"""A server or a worker of a run as a program, which an actor starts on its node of a Ray cluster.

The program is told what it is by a line of JSON on standard input, where no other user of the node sees the token.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from psys.cluster.child import ExitCode
from psys.cluster.roles import serve_shard
from psys.cluster.worker import LeaveRequested, leave_at_signals, work
from psys.errors import LostServerError, exit_with_message, say
from psys.output import protect_output
from psys.transport.join_messages import Role


class Part(NamedTuple):
    """A process of a run, as it is started on a node."""

    role: Role
    number: int
    host: str
    port: int
    token: str
    threads: int
    store: str | None = None
    """where the node has the prepared store, which a server does not need"""


def main() -> None:
    """Be the server or worker until the run ends. Exits with an ExitCode, or 2 and a message."""
    protect_output()
    leave_at_signals()
    with exit_with_message():
        part = Part(*json.loads(sys.stdin.readline()))
        if part.role == "worker":
            assert part.store
            work(part.host, part.port, part.threads, part.token, Path(part.store))
            return
        try:
            serve_shard(part.host, part.port, part.token, part.number)
        except LostServerError as error:
            say(str(error))
            sys.exit(ExitCode.SERVER_LOST)
        except LeaveRequested:
            return


if __name__ == "__main__":
    main()
