"""Fault plans: what goes wrong in which worker and when, so that a test or a study can count on it."""

from pathlib import Path
from random import Random
from typing import Literal

from pydantic import Field

from psys.config import Config, read_yaml, validate
from psys.errors import PsysError

_LEAST_SPREAD = 1e-6  # factors of less spread are 1


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


class SlowWorker(Config):
    """A straggler, or workers of varying speed. Entries that name the same worker multiply."""

    worker: int | None = Field(None, ge=0)
    """number of the worker, as in its name; by default all workers, also those that join later"""
    factor: float = Field(1.0, ge=1, le=1000)
    """multiplies the time that each gradient takes to compute"""
    spread: float = Field(0.0, ge=0, le=10)
    """coefficient of variation of a gamma-distributed factor of mean 1, drawn for each step, which multiplies as well;
    a step that would be faster than the machine is as fast as the machine"""


class FaultPlan(Config):
    """All faults of a run."""

    faults: tuple[Fault, ...] = ()
    slow_workers: tuple[SlowWorker, ...] = ()

    def at(self, worker: int, step: int) -> list[Fault]:
        """The faults of a worker at a step."""
        return [fault for fault in self.faults if (fault.worker, fault.step) == (worker, step)]

    def slowdown(self, worker: int, step: int, seed: int) -> float:
        """How many times as long a worker computes at a step; the same for the same `seed`.

        Gamma-distributed times of tasks: Ali et al., "Task execution time modeling for heterogeneous computing
        systems", HCW 2000.
        """
        draws, slowdown = Random(f"{seed} {worker} {step}"), 1.0
        for slow in self.slow_workers:
            if slow.worker in (None, worker):
                slowdown *= slow.factor
                if slow.spread > _LEAST_SPREAD:
                    slowdown *= draws.gammavariate(slow.spread**-2, slow.spread**2)
        return slowdown


def read_plan(path: Path | None, workers: int | None = None) -> FaultPlan:
    """The plan in a YAML file such as `faults: [{worker: 1, step: 5, kind: kill}]`. Raises PsysError if it is wrong.

    `workers`: of a new run, if known: `slow_workers` can name only these.
    """
    plan = validate(FaultPlan, read_yaml(path), where=str(path)) if path else FaultPlan()
    for slow in plan.slow_workers:
        if workers is not None and slow.worker is not None and slow.worker >= workers:
            raise PsysError(
                f"'slow_workers' names worker {slow.worker}, and the run has workers 0 to {workers - 1} (in {path})"
            )
    return plan
