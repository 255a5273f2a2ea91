"""Repeated kills (SIGKILL) of random workers of one run: `python -m benchmarks.storm [--kills 100] [--mode async]`.

The supervisor of the run replaces killed workers. As soon as all workers have made an update, the benchmark waits up
to two seconds and kills the next worker. From the events of the run it computes the seconds from a worker's death to
the first update of its replacement, and the longest time between two updates of any surviving worker after that
death, to compare with the times before the first death. Then the benchmark stops and audits the run, and counts the
processes, ports, shared memory and temporary files that are left. Results: results/<machine>/storm.json, one part per
mode.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.measure import ROOT, Running, median_spread, prepared_sample, results_path, table, write
from psys.errors import PsysError, exit_with_message
from psys.ps.events import RunEnded, RunEvent, UpdateApplied, WorkerLeft
from psys.run.audit import audit
from psys.run.events import read_events

LIMIT_SECONDS = 60.0
POLL_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 2.0
SHARED_MEMORY = Path("/dev/shm")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mode", choices=["async", "ssp", "sync"], default="async")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=results_path("storm"))
    arguments = parser.parse_args()
    prepared_sample(arguments.store)
    results = storm(arguments)
    write(arguments.out, results, part=arguments.mode)
    print("\n".join(table(["what", f"{arguments.kills} kills, {arguments.mode}"], summary(results))))


def storm(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the events of the run, its audited batch accounting, and the number of things left behind."""
    chance = random.Random(arguments.seed)
    segments = set(SHARED_MEMORY.iterdir())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "run" / "events.jsonl"
        command = ["launch/ps.py", "--mode", arguments.mode, "--workers", arguments.workers, "--epochs", 100_000]
        settings = ["--store", arguments.store.absolute(), "--runs", folder, "--name", "run", "--snapshot-epochs", 1000]
        with Running([[*command, *settings]], folder / "log") as running:
            progress = Progress(path)
            for kill in range(arguments.kills + 1):
                progress.expected = arguments.workers + kill
                running.wait(progress.all_updated, LIMIT_SECONDS, POLL_SECONDS)
                if kill == arguments.kills:
                    break
                time.sleep(chance.uniform(0, LONGEST_PAUSE_SECONDS))
                chance.choice(list(running.named("psys-worker"))).kill()
                if kill % 10 == 9:
                    print(f"{kill + 1} killed", file=sys.stderr, flush=True)
            family = list(running.processes())
            ports = set().union(*(listening(process) for process in family))
            family[0].send_signal(signal.SIGINT)
            psutil.wait_procs(family[:1], LIMIT_SECONDS)
            left = {
                "processes": sum(process.is_running() for process in family),
                "ports": len(ports & listening(psutil)),
                "shared memory": len(set(SHARED_MEMORY.iterdir()) - segments),
                "temporary files": sum(1 for _ in (folder / "run").rglob("*.tmp")),
            }
        audit(path, Console(quiet=True))
        events = list(read_events(path))
        if not isinstance(end := events[-1], RunEnded):
            raise PsysError(f"the run did not end within {LIMIT_SECONDS:g} s of SIGINT: its last event is {end}")
        return {
            "kills": arguments.kills,
            **waits(events, arguments.kills),
            "batches": {name: count for name, count in asdict(end).items() if isinstance(count, int)},
            "left": left,
        }


class Progress:
    """The workers that have made an update; reads each event of a running run once."""

    def __init__(self, path: Path) -> None:
        self.expected = 0
        self._path, self._read, self._workers = path, 0, set[str]()

    def all_updated(self) -> bool:
        """Whether at least `expected` workers have made an update."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
            whole = added[: added.rfind(b"\n") + 1]
            self._read += len(whole)
            for event in map(json.loads, whole.splitlines()):
                self._workers.update(event["workers"] if event["event"] == "update" else ())
        return len(self._workers) >= self.expected


def listening(where: Any) -> set[int]:
    """TCP ports on which a process listens; of the module psutil itself, ports on which any process listens."""
    return {c.laddr.port for c in where.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def waits(events: Sequence[RunEvent], kills: int) -> dict[str, list[float]]:
    """Seconds of each replacement, and the longest wait of any worker after each death."""
    worked: defaultdict[str, list[float]] = defaultdict(list)
    killed: list[float] = []
    for event in events:
        if isinstance(event, UpdateApplied):
            for worker in event.workers:
                worked[worker].append(event.seconds)
        elif isinstance(event, WorkerLeft) and event.reason == "disconnected":
            killed.append(event.seconds)
    if len(killed) != kills:
        raise PsysError(f"{kills} workers were killed, but the run recorded {len(killed)} deaths")
    began = sorted(times[0] for times in worked.values())
    replacements = began[len(began) - kills :]
    gaps = [pair for times in worked.values() for pair in pairwise(times)]
    ends = [*killed[1:], float("inf")]
    return {
        "replacement_seconds": [round(updated - died, 3) for died, updated in zip(killed, replacements, strict=True)],
        "longest_wait_seconds": [
            round(max(b - a for a, b in gaps if b >= died and a < end), 3)
            for died, end in zip(killed, ends, strict=True)
        ],
        "undisturbed_wait_seconds": [round(b - a, 3) for a, b in gaps if b < killed[0]],
    }


def summary(results: dict[str, Any]) -> list[tuple[str, object]]:
    """Rows of the table."""
    rows: list[tuple[str, object]] = []
    for key, what in (
        ("replacement_seconds", "from a death to the first update of the replacement, s"),
        ("longest_wait_seconds", "longest wait of a surviving worker, s, after each death"),
        ("undisturbed_wait_seconds", "wait between two updates before the first death, s"),
    ):
        rows.append((what, f"{median_spread(results[key], 2)}, at most {max(results[key]):.2f}"))
    batches, left = results["batches"], results["left"]
    rows += [(f"batches {name}", batches[name]) for name in ("applied", "reissued", "lost")]
    return rows + [(f"{what} left behind", count) for what, count in left.items()]


if __name__ == "__main__":
    with exit_with_message():
        main()
