"""Faults on purpose: what a worker is to suffer at which of its steps, so that a test or a study can count on it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import Field

from psys.config import Config, read_yaml, validate


class Fault(Config):
    """One fault of one worker at one step."""

    worker: int = Field(ge=0)
    """number of the worker, as in its name"""
    step: int = Field(ge=0)
    """the worker's step, 0 for the first gradient it computes; it comes before that gradient is pushed"""
    kind: Literal["kill", "hang", "slow", "nan", "drop_reply"]
    """kill: as by kill -9; hang: the whole process stands still; slow: it only computes for longer; nan: the gradient
    is; drop_reply: the answer to its push is lost"""
    seconds: float = Field(1.0, gt=0, le=3600)
    """that it hangs or is slow"""


class FaultPlan(Config):
    """All faults of a run."""

    faults: tuple[Fault, ...] = ()

    def at(self, worker: int, step: int) -> list[Fault]:
        """What happens to a worker at a step."""
        return [fault for fault in self.faults if (fault.worker, fault.step) == (worker, step)]


def read_plan(path: Path | None) -> FaultPlan:
    """The plan in a YAML file such as `faults: [{worker: 1, step: 5, kind: kill}]`. Raises PsysError if it is wrong."""
    return validate(FaultPlan, read_yaml(path), where=str(path)) if path else FaultPlan()


def suffer(fault: Fault) -> None:
    """Be killed, hang or be slow; the other kinds are for those who hold the gradient and the answer."""
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            # Whoever stands still cannot wake itself.
            waker = f"import os, signal, time; time.sleep({fault.seconds}); os.kill({os.getpid()}, signal.SIGCONT)"
            subprocess.Popen([sys.executable, "-S", "-c", waker])
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow":
            time.sleep(fault.seconds)
