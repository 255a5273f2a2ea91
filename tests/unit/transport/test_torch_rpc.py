"""What a user reads about failures that torch RPC describes in its own words."""

import pytest

from psys.transport.torch_rpc import _unavailable

ORIGIN = " (this error originated at tensorpipe/transport/uv/connection_impl.cc:132)\nException raised from timeout"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("eof" + ORIGIN, "connection lost"),
        ("ECONNREFUSED: connection refused" + ORIGIN, "connection refused"),
        ("RPC ran for more than set timeout (500 ms) and will now be marked with an error", "no answer in time"),
        ("EMFILE: too many open files" + ORIGIN, "too many open files: raise the limit with `ulimit -n`"),
        ("", "connection lost"),
    ],
)
def test_failures_of_torch_rpc_in_plain_words(text: str, reason: str) -> None:
    assert str(_unavailable(RuntimeError(text))) == reason
