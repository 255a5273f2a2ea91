"""The command that a run records."""

import sys

import pytest

from psys.run.environment import environment


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/home/me/psys/__main__.py", "train", "--epochs", "2"], ["python", "-m", "psys", "train", "--epochs", "2"]),
        (["/home/me/.venv/bin/psys", "tradeoff"], ["psys", "tradeoff"]),
        (["launch/ps.py", "--mode", "sync"], ["launch/ps.py", "--mode", "sync"]),
    ],
)
def test_the_command_has_no_path_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], command: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert environment()["command"] == command
