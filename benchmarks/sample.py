"""Accuracy and time of every mode on the embedded sample: `python -m benchmarks.sample [--seeds 3] [--modes sync ...]`.

Runs configs/sample.yaml as a user would, one run after the other, modes interleaved. Results go to benchmarks/sample/
(a JSON for each run, with its environment; a run that is there already is not repeated), the table to standard output.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "sample"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.sample", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", default=["sync", "ssp", "async"])
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for mode in arguments.modes:
            target = RESULTS / f"{mode}-{seed}.json"
            if not target.exists():
                target.write_text(json.dumps(run(mode, seed), indent=1) + "\n", encoding="utf-8")
    for line in table(arguments.modes):
        print(line)


def run(mode: str, seed: int) -> dict[str, Any]:
    """One run's result.json and environment.json; the first asynchronous one also leaves its curves."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--mode", mode, "--seed", str(seed), "--runs", folder, "--name", "run"]
        subprocess.run([sys.executable, ROOT / "launch" / "ps.py", *flags], cwd=ROOT, check=True, stdout=sys.stderr)
        path = Path(folder) / "run"
        if (mode, seed) == ("async", 0):
            shutil.copyfile(path / "curves.png", RESULTS / "curves.png")
        environment = json.loads((path / "environment.json").read_text(encoding="utf-8"))
        environment["command"] = ["launch/ps.py", *flags[:4]]
        return {"environment": environment, **json.loads((path / "result.json").read_text(encoding="utf-8"))}


def table(modes: list[str]) -> list[str]:
    """The Markdown table of all results on disk, mean and, from two seeds on, standard deviation."""
    lines = [
        "| mode | seeds | test accuracy, best snapshot | last snapshot | training | images/s | staleness mean / max |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode in modes:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(f"{mode}-*.json"))]
        best, last = (spread([100 * run[role]["test"]["accuracy"] for run in runs]) for role in ("best", "last"))
        seconds, speed = (
            spread([run["train_seconds"] for run in runs]),
            spread([run["images_per_second"] for run in runs]),
        )
        stale = statistics.mean(run["staleness_mean"] for run in runs)
        stalest = max(run["staleness_max"] for run in runs)
        lines.append(
            f"| {mode} | {len(runs)} | {best} % | {last} % | {seconds} s | {speed} | {stale:.2f} / {stalest} |"
        )
    return lines


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
