"""The program that prepares a store ends with the training that started it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from psys.training.store import run_program
from tests.support.processes import ROOT, wait_until

PROGRAMS = ROOT / "tests" / "support" / "programs"
SLEEPING = [sys.executable, str(PROGRAMS / "sleeping.py")]


def has_started(file: Path) -> bool:
    return file.exists() and file.read_text() != ""


def test_exit_codes() -> None:
    codes = ("exit 0", "exit 2", "kill -9 $$")
    assert [run_program(["sh", "-c", code])[0] for code in codes] == [0, 2, 128 + signal.SIGKILL]


def test_error_message_is_returned_and_other_output_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    script = "echo a warning >&2; echo 'psys: error: no such source' >&2; exit 2"
    assert run_program(["sh", "-c", script]) == (2, "no such source")
    assert capsys.readouterr().err == "a warning\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_interrupts_the_program(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "pid"
    before = signal.getsignal(number)

    def send() -> None:
        wait_until(lambda: has_started(file), "the program")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code, _ = run_program([*SLEEPING, str(file)])
    sender.join()

    assert code == 130
    assert file.read_text() == "interrupted"
    assert signal.getsignal(number) == before


def test_program_is_killed_with_its_launcher(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = [sys.executable, str(PROGRAMS / "running.py"), *SLEEPING, str(file)]
    launcher = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        wait_until(lambda: has_started(file), "the program")
        program = psutil.Process(int(file.read_text()))
    finally:
        launcher.kill()
        launcher.wait()

    def has_ended() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return not program.is_running() or program.status() == psutil.STATUS_ZOMBIE
        return True

    wait_until(has_ended, "the end of the program")
    assert file.read_text() != "interrupted"
