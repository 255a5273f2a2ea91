"""Accuracy and time of modes, precisions and wire formats on the embedded sample: `python -m benchmarks.sample`.

The benchmark runs configs/sample.yaml with launch/ps.py, one run after the other, arms interleaved. The result file
has one part per arm and seed; a run that the file already holds is not repeated. The curves of the first asynchronous
run go to `--curves`. Results: results/<machine>/sample.json.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, count, environment, read_parts, results_path, table, write
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
KEYS = ("updates", "train_seconds", "images_per_second", "staleness_mean", "staleness_max", "best", "last")  # kept


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.sample", description=__doc__)
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--curves", type=Path, default=ROOT / "docs" / "images" / "curves.png")
    parser.add_argument("--out", type=Path, default=results_path("sample"))
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            if (part := f"{arm}-{seed}") not in read_parts(arguments.out):
                write(arguments.out, run(arm, seed, arguments.curves), part)
    print("\n".join(report(arguments.arms, read_parts(arguments.out).values())))


def run(arm: str, seed: int, curves: Path) -> dict[str, Any]:
    """The result of one run, without its intermediate points; the first asynchronous run also writes `curves`.

    Raises PsysError if the run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = [*ARMS[arm], "--seed", str(seed)]
        command = [sys.executable, str(ROOT / "launch" / "ps.py"), *flags, "--runs", folder, "--name", "run"]
        if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode:
            raise PsysError(
                f"the run of {arm} with seed {seed} failed: results so far are kept; start again to continue"
            )
        path = Path(folder) / "run"
        if (arm, seed) == ("async", 0):
            shutil.copyfile(path / "curves.png", curves)
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        used = {**environment(), "command": ["python", "launch/ps.py", *flags]}
        return {"environment": used, "arm": arm, "seed": seed, **{key: result[key] for key in KEYS}}


def report(arms: list[str], runs: Collection[dict[str, Any]]) -> list[str]:
    """The Markdown table of all runs, mean and, from two seeds on, standard deviation."""
    header = ["arm", "seeds", "test accuracy, best snapshot", "last snapshot", "training", "images/s", "staleness"]
    rows = []
    for arm in arms:
        if of_arm := [run for run in runs if run["arm"] == arm]:
            best, last = (spread([100 * run[role]["test"]["accuracy"] for run in of_arm]) for role in ("best", "last"))
            seconds = spread([run["train_seconds"] for run in of_arm])
            speed = spread([run["images_per_second"] for run in of_arm])
            stale = f"{statistics.mean(run['staleness_mean'] for run in of_arm):.2f}"
            stalest = max(run["staleness_max"] for run in of_arm)
            rows.append(
                [arm, len(of_arm), f"{best} %", f"{last} %", f"{seconds} s", speed, f"{stale}, at most {stalest}"]
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
