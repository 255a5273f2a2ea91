"""Accuracy and time of modes, precisions and wire formats on the embedded sample: `python -m benchmarks.sample`.

Runs configs/sample.yaml as a user would, one run after the other, arms interleaved. Results go to benchmarks/sample/
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

from benchmarks.measure import ROOT, count, table
from psys.errors import PsysError, exit_with_message

ARMS = {
    "sync": ["--mode", "sync"],
    "ssp": ["--mode", "ssp"],
    "async": ["--mode", "async"],
    "async-prefetch": ["--mode", "async", "--prefetch", "1"],
    "async-no-look-ahead": ["--mode", "async", "--no-optimizer.look-ahead"],
    "async-prefetch-no-look-ahead": ["--mode", "async", "--prefetch", "1", "--no-optimizer.look-ahead"],
    "async-fp32": ["--mode", "async", "--precision", "fp32"],
    "async-wire-bf16": ["--mode", "async", "--wire", "bf16"],
    "async-wire-fp16": ["--mode", "async", "--wire", "fp16"],
    "async-wire-topk": ["--mode", "async", "--wire", "topk"],
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.sample", description=__doc__)
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "sample")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            target = arguments.out / f"{arm}-{seed}.json"
            if not target.exists():
                target.write_text(json.dumps(run(arm, seed, arguments.out), indent=1) + "\n", encoding="utf-8")
    print("\n".join(report(arguments.arms, arguments.out)))


def run(arm: str, seed: int, out: Path) -> dict[str, Any]:
    """One run's result.json and environment.json; the first asynchronous one also leaves its curves.

    Raises PsysError if it does not come to its end.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = [*ARMS[arm], "--seed", str(seed), "--runs", folder, "--name", "run"]
        if subprocess.run([sys.executable, ROOT / "launch" / "ps.py", *flags], cwd=ROOT, stdout=sys.stderr).returncode:
            raise PsysError(f"no result of {arm} with seed {seed}: what is there stays, and is not repeated next time")
        path = Path(folder) / "run"
        if (arm, seed) == ("async", 0):
            shutil.copyfile(path / "curves.png", out / "curves.png")
        environment = json.loads((path / "environment.json").read_text(encoding="utf-8"))
        environment["command"] = ["launch/ps.py", *flags[:-4]]
        return {"environment": environment, **json.loads((path / "result.json").read_text(encoding="utf-8"))}


def report(arms: list[str], out: Path) -> list[str]:
    """The Markdown table of all results on disk, mean and, from two seeds on, standard deviation."""
    header = ["arm", "seeds", "test accuracy, best snapshot", "last snapshot", "training", "images/s", "staleness"]
    rows = []
    for arm in arms:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"{arm}-[0-9]*.json"))]
        if runs:
            best, last = (spread([100 * run[role]["test"]["accuracy"] for run in runs]) for role in ("best", "last"))
            seconds = spread([run["train_seconds"] for run in runs])
            speed = spread([run["images_per_second"] for run in runs])
            stale = f"{statistics.mean(run['staleness_mean'] for run in runs):.2f}"
            stalest = max(run["staleness_max"] for run in runs)
            rows.append(
                [arm, len(runs), f"{best} %", f"{last} %", f"{seconds} s", speed, f"{stale}, at most {stalest}"]
            )
    return table(header, rows)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    with exit_with_message():
        main()
