"""Faults injected into a child of this process."""

import os
import signal

import pytest

from psys.cluster.faults import inject
from psys.run.faults import Fault


def child_with(fault: Fault) -> int:
    """The process id of a child that injects the fault into itself and then exits."""
    if not (pid := os.fork()):
        try:
            inject(fault)
        finally:
            os._exit(0)
    return pid


def test_kill_ends_the_process_by_sigkill() -> None:
    _, status = os.waitpid(child_with(Fault(worker=0, step=0, kind="kill")), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_hang_stops_the_process_and_continues_it() -> None:
    pid = child_with(Fault(worker=0, step=0, kind="hang", seconds=0.3))
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("kind", ["slow", "nan", "drop_reply"])
def test_other_faults_leave_the_process_alive(kind: str) -> None:
    inject(Fault.model_validate({"worker": 0, "step": 0, "kind": kind, "seconds": 0.01}))
