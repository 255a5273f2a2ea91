"""Resident memory of the server over a long run: `python -m benchmarks.memory [--model resnet44] [--pushes 20000]`.

The benchmark starts a run with batches of one image and interrupts the run after `--pushes` pushes. It reads the
server's resident memory at twenty points and compares the last point with the bound, (parameters + optimizer state) x
2 + 300 MB, and with the point after a tenth of the run. Results: results/<machine>/memory.json, one part per model.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, Running, count, prepared_sample, results_path, table, write
from psys.data.store import PreparedStore
from psys.errors import exit_with_message
from psys.models.registry import build

_POINTS = 20
_LIMIT_SECONDS = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__)
    parser.add_argument("--model", default="resnet44")
    parser.add_argument("--pushes", type=count, default=20_000)
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=results_path("memory"))
    arguments = parser.parse_args()
    prepared_sample(arguments.store)
    classes = len(PreparedStore.open(arguments.store).classes)
    vector = 4 * sum(p.numel() for p in build(arguments.model, classes).parameters()) / 1e6
    bound = 2 * (vector + vector) + 300  # SGD's momentum is its state
    points = measure(arguments.model, arguments.pushes, arguments.store.absolute())
    settled = next(point for point in points if point["pushes"] >= arguments.pushes / 10)
    growth = points[-1]["resident_mb"] / settled["resident_mb"] - 1
    results = {"parameters_mb": vector, "bound_mb": bound, "growth": growth, "points": points}
    write(arguments.out, results, part=arguments.model)
    header = ["model", "pushes", "resident MB", "bound MB", "growth after the first tenth"]
    last = points[-1]
    row = [arguments.model, last["pushes"], f"{last['resident_mb']:.0f}", f"{bound:.0f}", f"{growth:+.2%}"]
    print("\n".join(table(header, [row])))


def measure(model: str, pushes: int, store: Path) -> list[dict[str, float]]:
    """Resident memory of the server in MB after each twentieth of the `pushes` of one asynchronous run."""
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "run" / "events.jsonl"
        command = ["launch/ps.py", "--model", model, "--mode", "async", "--workers", 2, "--batch-size", 1]
        command += ["--augment.views", 1, "--epochs", 1000, "--schedule.learning-rate", 0.001]
        command += ["--store", store, "--runs", folder, "--name", "run"]
        points: list[dict[str, float]] = []
        with Running([command], folder / "log") as running:
            running.wait(path.exists, timeout_seconds=60)
            server = next(running.named("psys-server"))
            with path.open(encoding="utf-8") as events:
                applied = 0

                def reached() -> bool:
                    nonlocal applied
                    applied += events.read().count('"event": "update"')
                    return applied >= pushes * (len(points) + 1) / _POINTS

                while len(points) < _POINTS:
                    running.wait(reached, _LIMIT_SECONDS)
                    points.append({"pushes": applied, "resident_mb": server.memory_info().rss / 1e6})
                    print(points[-1], file=sys.stderr, flush=True)
        return points


if __name__ == "__main__":
    with exit_with_message():
        main()
