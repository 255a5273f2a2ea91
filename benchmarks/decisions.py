"""Microseconds of one push_pull decision, by mode and number of workers.

    python -m benchmarks.decisions

Measured is RunController.handle of a push and request, and of the notice that its step was applied: what the run's one
lock is held for. All workers compute equally fast; memory, threads and network are left out.
"""

import argparse
import gc
import statistics
import time
from collections import deque
from pathlib import Path

from benchmarks.measure import count, results_path, table, write
from psys.ps.controller import RunController
from psys.ps.coordinator import Coordinator
from psys.ps.effects import Effects
from psys.ps.ledger import Ledger
from psys.ps.membership import Membership
from psys.ps.messages import Event, Joined, Lease, Push, PushPull, StepApplied
from psys.ps.optimizer import OptimizerConfig
from psys.ps.policy import Mode, make_policy, rounds_ahead
from psys.ps.rules import RunRules
from psys.ps.schedule import ScheduleConfig

WORKERS = (8, 64, 512, 4096)
MODES: tuple[Mode, ...] = ("sync", "async", "ssp")
STALENESS = 2


class _Run:
    """A controller whose workers have all joined, and the leases that they hold, the oldest first."""

    def __init__(self, mode: Mode, workers: int, decisions: int) -> None:
        batches = decisions + 4 * workers
        coordinator = Coordinator(
            Ledger(epochs=1, samples=batches, batch_size=1),
            make_policy(mode, STALENESS, prefetch=0),
            OptimizerConfig(),
            ScheduleConfig(),
            epochs=1,
            awaited=workers,
            slots=1 + rounds_ahead(mode, STALENESS, prefetch=0),
        )
        self._controller = RunController(RunRules(), Membership(timeout_seconds=60.0), coordinator)
        self._held: deque[Lease] = deque()
        for number in range(workers):
            name = f"worker{number}"
            self._handle(Joined(name))
            self._handle(PushPull(name, None))

    def decide(self) -> float:
        """One worker hands in its gradient; returns the seconds that the decision took."""
        lease = self._held.popleft()
        event = PushPull(lease.worker, Push(lease, 1.0, 1, 1, 1.0))
        began = time.perf_counter()
        self._handle(event)
        return time.perf_counter() - began

    def _handle(self, event: Event) -> None:
        effects: Effects = self._controller.handle(0.0, event)
        while effects.steps:
            self._held.extend(reply.grant.lease for reply in effects.replies if reply.grant.lease)
            effects = self._controller.handle(0.0, StepApplied(effects.steps[-1].number))


def measured(mode: Mode, workers: int, decisions: int) -> dict[str, float]:
    """Median, mean and 99th percentile in microseconds, after a warm-up of two decisions for each worker."""
    run = _Run(mode, workers, decisions + 2 * workers)
    for _ in range(2 * workers):
        run.decide()
    gc.collect()
    taken = [1e6 * run.decide() for _ in range(decisions)]
    return {
        "median_us": round(statistics.median(taken), 2),
        "mean_us": round(statistics.fmean(taken), 2),
        "p99_us": round(statistics.quantiles(taken, n=100)[98], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=count, default=20_000, help="of each mode and number of workers")
    parser.add_argument("--out", type=Path, default=results_path("decisions"))
    arguments = parser.parse_args()
    modes = {
        mode: {str(workers): measured(mode, workers, arguments.decisions) for workers in WORKERS} for mode in MODES
    }
    rows = [
        (mode, *(f"{cells[str(workers)]['median_us']:.1f}" for workers in WORKERS)) for mode, cells in modes.items()
    ]
    print("\n".join(table(("median µs", *(f"{workers} workers" for workers in WORKERS)), rows)))
    write(arguments.out, {"modes": modes})


if __name__ == "__main__":
    main()
