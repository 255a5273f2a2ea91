"""What a process and the rendezvous server say to each other: lines of JSON, from which nothing is ever executed.

server   {"psys": challenge}
client   JoinRequest
server   JoinResponse, or {"refused": reason}
client   {"heartbeat": true}, which the server echoes; {"ready": address} of a server that answers calls;
         {"fault": fields} before a worker injects a fault; {"left": true} of a worker that leaves the run
"""

import hashlib
import hmac
import json
from typing import Any, Literal

from pydantic import Field

from psys.config import Config
from psys.errors import PsysError
from psys.run.faults import FaultPlan

LINE_BYTES = 1 << 20
"""Most bytes of a line once a process has joined, and of a line from the server."""
REQUEST_BYTES = 1 << 12
"""Most bytes of a JoinRequest."""

Role = Literal["worker", "server"]


class JoinRequest(Config):
    """A process's answer to the challenge."""

    proof: str = Field(max_length=64)
    """see `proof_of`"""
    role: Role
    number: int | None = Field(None, ge=0, lt=2**31)
    """of a server that the run started itself; of a worker that reconnects; None: the run assigns one"""
    incarnation: str = Field("", max_length=64)
    """the incarnation that a worker that reconnects was connected to"""


class JoinResponse(Config):
    """The server's answer to a process that proved that it has the token."""

    incarnation: str
    """identifies the process that is server 0; a new server 0 does not know the leases that an earlier one granted"""
    settings: str
    """RunConfig as JSON"""
    store_hash: str
    """hash of the prepared store's content; a worker's own copy must have the same"""
    classes: int = Field(ge=1)
    """number of classes of the prepared store, so that a server needs no store"""
    image_size: tuple[int, int]
    """height and width of the store's images, which the parameters of a model may depend on"""
    heartbeat_timeout: float
    """seconds without an echo after which a worker takes the connection for broken"""
    join_timeout: float
    """seconds that the run waits for all its servers to join"""
    number: int
    """assigned to the process among the processes of its role"""
    servers: tuple[str, ...]
    """RPC addresses of all servers, for a worker"""
    listen: str
    """address that server 0 listens on"""
    faults: FaultPlan = FaultPlan()
    """faults that workers inject into themselves"""


def proof_of(token: str, challenge: str) -> str:
    """HMAC-SHA256 of the challenge with the token as the key (RFC 2104), in hexadecimal digits."""
    # Neither the environment nor JSON is limited to valid UTF-8.
    key, message = (text.encode(errors="surrogatepass") for text in (token, challenge))
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def format_line(message: dict[str, Any]) -> bytes:
    """The message as one line of JSON."""
    return json.dumps(message).encode() + b"\n"


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object in a line. Raises PsysError for anything else, and EOFError for the end of the connection."""
    if not line:
        raise EOFError("the connection was closed")
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    if not line.endswith(b"\n") or not isinstance(parsed, dict):
        raise PsysError(f"a line of JSON was expected, got {line[:40]!r}")
    return parsed
