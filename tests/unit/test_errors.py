"""What a user reads when something fails."""

import errno
import os
import resource
import socket

import pytest

from psys.errors import PsysError, allow_many_open_files, reason_of, shown_once


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "a/b: No such file or directory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many open files: raise the limit with `ulimit -n`"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (TimeoutError("timed out"), "timed out"),
        (PsysError("two\n lines"), "two lines"),
        (EOFError(), "EOFError"),
    ],
)
def test_reasons(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
    try:
        allow_many_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("0", True), ("1", False)])
def test_an_error_of_all_ranks_is_shown_by_the_first(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, shown: bool
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises((PsysError, SystemExit)) as ended, shown_once():
        raise PsysError("wrong")
    assert isinstance(ended.value, PsysError) is shown
    assert shown or str(ended.value) == "2"
