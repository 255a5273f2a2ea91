"""The program that prepares for a training ends with it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from psys.training.launch import run_program
from tests.support.processes import wait_until

_SLEEPER = """
import os, sys, time
from pathlib import Path
try:
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(60)
except KeyboardInterrupt:
    Path(sys.argv[1]).write_text("ended in order")
    sys.exit(130)
"""
_LAUNCHER = "import sys; from psys.training.launch import run_program; run_program(sys.argv[1:])"


def test_exit_codes() -> None:
    codes = ("exit 0", "exit 2", "kill -9 $$")
    assert [run_program(["sh", "-c", code]) for code in codes] == [0, 2, 128 + signal.SIGKILL]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "pid"
    before = signal.getsignal(number)

    def send() -> None:
        wait_until(lambda: file.exists() and file.read_text() != "", "the program")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code = run_program([sys.executable, "-c", _SLEEPER, str(file)])
    sender.join()

    assert code == 130
    assert file.read_text() == "ended in order"
    assert signal.getsignal(number) == before


def test_a_killed_launcher_takes_the_program_along(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = [sys.executable, "-c", _LAUNCHER, sys.executable, "-c", _SLEEPER, str(file)]
    launcher = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        wait_until(lambda: file.exists() and file.read_text() != "", "the program")
        program = psutil.Process(int(file.read_text()))
    finally:
        launcher.kill()
        launcher.wait()

    def is_gone() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return not program.is_running() or program.status() == psutil.STATUS_ZOMBIE
        return True

    wait_until(is_gone, "the end of the program")
    assert file.read_text() != "ended in order"
