"""Seconds from `torchrun launch/ps.py` to the first applied gradient: `python -m benchmarks.startup [--rounds 5]`.

The benchmark starts the default run, one worker per core, on a prepared store. It watches for four stages in the
files of the run: the run directory (launcher up, settings read, store checked), the `start` event (server up), the
`join` event of the last worker, and the first `update` event. It looks every 10 ms. The server writes update events
every 200 ms, so the last stage may be seen up to 200 ms late. Results: results/<machine>/startup.json.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import ROOT, Running, count, median_spread, prepared_sample, results_path, table, write
from psys.cores import available_cores
from psys.errors import exit_with_message
from psys.ps.events import RunEvent, RunStarted, UpdateApplied, WorkerJoined
from psys.run.events import read_events

TORCHRUN = ["-m", "torch.distributed.run"]  # the torchrun of this environment
POLL_SECONDS = 0.01
LIMIT_SECONDS = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=results_path("startup"))
    arguments = parser.parse_args()
    prepared_sample(arguments.store)
    rounds = []
    for number in range(arguments.rounds):
        rounds.append(measure(arguments.store.absolute()))
        print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
    write(arguments.out, {"workers": available_cores(), "rounds": rounds})
    rows = [(stage, median_spread([seconds[stage] for seconds in rounds], digits=2)) for stage in rounds[0]]
    print("\n".join(table(["stage", "seconds since the command"], rows)))


def measure(store: Path) -> dict[str, float]:
    """Start the default run and interrupt it after the first update; seconds from the start to each stage."""
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "run" / "events.jsonl"
        workers = available_cores()

        def seen(kind: type[RunEvent], times: int = 1) -> bool:
            return path.exists() and sum(isinstance(event, kind) for event in read_events(path)) >= times

        stages: dict[str, Callable[[], bool]] = {
            "run directory": path.parent.exists,
            "server up": lambda: seen(RunStarted),
            "all workers joined": lambda: seen(WorkerJoined, workers),
            "first update": lambda: seen(UpdateApplied),
        }
        command = [*TORCHRUN, "launch/ps.py", "--store", store, "--runs", folder, "--name", "run", "--workers", workers]
        begin = time.monotonic()
        seconds = {}
        with Running([command], folder / "log") as running:
            for stage, reached in stages.items():
                running.wait(reached, LIMIT_SECONDS, POLL_SECONDS)
                seconds[stage] = round(time.monotonic() - begin, 3)
        return seconds


if __name__ == "__main__":
    with exit_with_message():
        main()
