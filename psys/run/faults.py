"""Fault plans: which fault a worker has at which of its steps, so that a test or a study can count on it."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from psys.config import Config, read_yaml, validate


class Fault(Config):
    """One fault of one worker at one step."""

    worker: int = Field(ge=0)
    """number of the worker, as in its name"""
    step: int = Field(ge=0)
    """the worker's step, 0 for the first gradient it computes; the fault comes before that gradient is pushed"""
    kind: Literal["kill", "hang", "slow", "nan", "drop_reply"]
    """kill: the process gets SIGKILL; hang: the whole process is stopped for some time; slow: the computation takes
    longer; nan: the gradient is not finite; drop_reply: the reply to the push is lost"""
    seconds: float = Field(1.0, gt=0, le=3600)
    """how long `hang` and `slow` last"""


class FaultPlan(Config):
    """All faults of a run."""

    faults: tuple[Fault, ...] = ()

    def at(self, worker: int, step: int) -> list[Fault]:
        """The faults of a worker at a step."""
        return [fault for fault in self.faults if (fault.worker, fault.step) == (worker, step)]


def read_plan(path: Path | None) -> FaultPlan:
    """The plan in a YAML file such as `faults: [{worker: 1, step: 5, kind: kill}]`. Raises PsysError if it is wrong."""
    return validate(FaultPlan, read_yaml(path), where=str(path)) if path else FaultPlan()
