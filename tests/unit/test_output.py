"""Programs whose standard output or standard error is closed, full, or on a terminal that went away."""

import contextlib
import fcntl
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psys.output import protect_output
from tests.support.processes import ROOT

SECONDS = 20.0
PRINTS = """
import os, signal, sys
from psys.output import protect_output
signal.signal(signal.SIGHUP, signal.SIG_IGN)
protect_output()
for stream in (sys.stdout, sys.stderr):
    for number in range(3):
        print(number, "x" * 100_000, file=stream, flush=True)
for descriptor in range(3):
    os.fstat(descriptor)
sys.exit(7)
"""
RESULT = """
import sys
from psys.errors import exit_with_message
from psys.output import protect_output, stdout_is_the_result
protect_output()
with exit_with_message(), stdout_is_the_result():
    print("x" * 1_000_000)
"""


def program(text: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, **options)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: that of the terminal emulator, and that of programs."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):  # it may be closed
            os.close(end)


def test_closed_streams() -> None:
    command = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", PRINTS]
    assert subprocess.run(command, cwd=ROOT, timeout=SECONDS).returncode == 7


def test_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        assert program(PRINTS, stdout=full, stderr=full).wait(SECONDS) == 7


def test_reader_that_went_away() -> None:
    read, write = os.pipe()
    os.close(read)
    done = program(PRINTS, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    _, err = done.communicate(timeout=SECONDS)
    assert done.returncode == 7
    assert err.decode() == "".join(f"{number} {'x' * 100_000}\n" for number in range(3))


def test_reader_that_does_not_read() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    assert program(PRINTS, stdout=write, stderr=write).wait(SECONDS) == 7
    os.close(write)
    os.close(read)


def test_terminal_that_nobody_reads(terminal: tuple[int, int]) -> None:
    assert program(PRINTS, stdout=terminal[1], stderr=terminal[1]).wait(SECONDS) == 7


def test_terminal_that_went_away(terminal: tuple[int, int]) -> None:
    os.close(terminal[0])
    assert program(PRINTS, stdout=terminal[1], stderr=terminal[1]).wait(SECONDS) == 7


def test_streams_stay_what_they_were(terminal: tuple[int, int], tmp_path: Path) -> None:
    text = """
import sys
from psys.output import protect_output
protect_output()
stream = sys.stdout
protect_output()
assert sys.stdout is stream
assert stream.isatty() and not sys.stderr.isatty()
assert (stream.fileno(), sys.stderr.fileno()) == (1, 2)
assert (stream.encoding, stream.name) == ("ascii", "<stdout>")
print("2 × 3")
stream.reconfigure(encoding="utf-8")
print("2 × 3")
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with (tmp_path / "err").open("wb") as err:
        code = program(text, stdout=terminal[1], stderr=err, env=environment).wait(SECONDS)
    assert (code, (tmp_path / "err").read_text()) == (0, "")
    assert os.read(terminal[0], 1000) == "2 \\xd7 3\r\n2 × 3\r\n".encode()


def test_stream_of_another_program_stays() -> None:
    before = sys.stdout, sys.stderr  # of pytest
    protect_output()
    assert (sys.stdout, sys.stderr) == before


def test_result_waits_for_a_slow_reader() -> None:
    done = program(RESULT, stdout=subprocess.PIPE)
    time.sleep(0.5)  # longer than other output waits
    out, _ = done.communicate(timeout=SECONDS)
    assert (done.returncode, len(out)) == (0, 1_000_001)


def test_result_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "wb") as full:
        done = program(RESULT, stdout=full, stderr=subprocess.PIPE)
        _, err = done.communicate(timeout=SECONDS)
    assert (done.returncode, err) == (2, b"psys: error: cannot write standard output: No space left on device\n")


def test_result_whose_reader_has_read_enough_is_no_error() -> None:
    done = program(RESULT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout
    assert done.stderr
    with done.stdout as out, done.stderr as err:
        out.read(10)
        out.close()
        assert (done.wait(SECONDS), err.read()) == (0, b"")
