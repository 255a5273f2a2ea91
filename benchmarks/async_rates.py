"""Accuracy on the embedded sample by mode, number of workers and settings, in one process on a virtual clock.

    python -m benchmarks.async_rates --workers 2 4 8 --rates 0.1 0.05 --seeds 2 -- --mode async

What follows `--` are settings of `psys train` over configs/sample.yaml. A trial is a run of psys.simulate with real
images and gradients; a worker's steps take gamma-distributed times of mean 1 (Ali et al., "Task execution time modeling
for heterogeneous computing systems", HCW 2000), all workers alike. Settings are chosen by the held-out images; the
accuracy on the test images is for the report. Trials are added to `--out`, one JSON object a line, and a trial that the
file holds is not repeated. docs/rates.md has the results.
"""

import argparse
import heapq
import json
import math
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import count, environment, machine, prepared_sample, table
from benchmarks.sample import spread
from psys.compute.device import keep_freed_memory
from psys.compute.evaluate import evaluate
from psys.compute.flat import FlatModel
from psys.config import parse
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.errors import exit_with_message
from psys.models.registry import build
from psys.ps.events import UpdateApplied
from psys.ps.store import SliceState
from psys.run.config import CONFIGS, RunConfig
from psys.simulate.in_process import InProcessRun
from psys.simulate.worker import workload_of
from psys.training import TrainingConfig

KEY = ("settings", "workers", "rate", "seed", "epochs", "spread")  # what tells trials apart


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.async_rates", description=__doc__)
    parser.add_argument("--workers", type=count, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1], help="learning rates, of one worker's batch")
    parser.add_argument("--seeds", type=count, default=2, help="how many, from 0 on")
    parser.add_argument("--epochs", type=count, default=20)
    parser.add_argument("--spread", type=float, default=0.2, help="standard deviation of a step's time")
    parser.add_argument("--store", type=Path, default=Path("stores/sample"))
    parser.add_argument("--out", type=Path, default=Path("rates.jsonl"))
    parser.add_argument("settings", nargs="*", help="after --: settings of psys train")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    prepared_sample(arguments.store)
    store = PreparedStore.open(arguments.store)
    for seed in range(arguments.seeds):
        for workers in arguments.workers:
            for rate in arguments.rates:
                settings = " ".join(arguments.settings)
                key = dict(zip(KEY, (settings, workers, rate, seed, arguments.epochs, arguments.spread), strict=True))
                if any(all(trial[name] == value for name, value in key.items()) for trial in read(arguments.out)):
                    continue
                flags = [*arguments.settings, "--seed", str(seed), "--epochs", str(arguments.epochs)]
                flags += ["--schedule.learning-rate", str(rate)]
                settings_of_training = parse(TrainingConfig, flags, "benchmarks.async_rates", CONFIGS / "sample.yaml")
                config = settings_of_training.run_config(workers)
                began = time.monotonic()
                trial = {**key, **trained(config, store, workers, arguments.spread)}
                trial |= {"seconds": round(time.monotonic() - began), "machine": machine(environment())}
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(trial) + "\n")
    print("\n".join(report(read(arguments.out))))


def trained(config: RunConfig, store: PreparedStore, workers: int, spread: float) -> dict[str, Any]:
    """Train to the end on the virtual clock. Accuracies (0 to 1) of the last and the best snapshot, and the staleness.

    `spread`: standard deviation of the time of a worker's step, whose mean is 1.
    """
    run = InProcessRun(config, workload_of(config, store), awaited=workers)
    draw = np.random.default_rng([config.seed, workers])
    shape = spread**-2
    finished: list[tuple[float, str]] = [(0.0, run.join()) for _ in range(workers)]  # heap: when a worker acts next
    while run.end is None:
        run.now, name = heapq.heappop(finished)
        run.step(name)
        acting = {worker for _, worker in finished}
        for worker in run.ready():
            if worker not in acting:
                heapq.heappush(finished, (run.now + draw.gamma(shape, 1 / shape), worker))
    test, held_out = split_rows(config, store)
    snapshots = [saved.state for saved in run.saves if saved.save.snapshot]
    accuracies = [accuracy(config, store, state, "train", held_out) for state in snapshots]
    best = int(np.argmax(accuracies))
    updates = [event for event in run.log if isinstance(event, UpdateApplied)]
    staleness = [versions for update in updates for versions in update.staleness]
    return {
        "held_out": accuracies[-1],
        "test": accuracy(config, store, snapshots[-1], "test", test),
        "best_held_out": accuracies[best],
        "best_test": accuracy(config, store, snapshots[best], "test", test),
        "loss": round(statistics.fmean(update.loss for update in updates[-100:]), 4),
        "diverged": not all(math.isfinite(update.loss) for update in updates) or run.ledger.epochs_done < config.epochs,
        "staleness": round(statistics.fmean(staleness), 2),
        "virtual_seconds": round(run.end.seconds, 1),
    }


def split_rows(config: RunConfig, store: PreparedStore) -> tuple[Any, Any]:
    """Rows of the test images, and of the held-out ones among the training images."""
    _, held_out = holdout(store.split("train").labels, config.validation_share, config.seed)
    return np.arange(len(store.split("test").labels)), held_out


def accuracy(config: RunConfig, store: PreparedStore, state: SliceState, split: str, rows: Any) -> float:
    """Share of the images at `rows` that the network of `state` gets right."""
    model = FlatModel(build(config.model, len(store.classes)))
    model.load(state.parameters, state.statistics)
    images, labels = store.split(split).images, store.split(split).labels
    colours = store.channel_mean, store.channel_std
    return evaluate(model.module, images, labels, rows, *colours, torch.device("cpu")).accuracy


def read(path: Path) -> list[dict[str, Any]]:
    """The trials of a file; none if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def report(trials: Iterable[dict[str, Any]]) -> list[str]:
    """The Markdown table of all trials: mean and standard deviation over the seeds, in percent."""
    header = ["settings", "workers", "rate", "epochs", "seeds", "held out", "test", "test, best snapshot", "loss"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for trial in trials:
        groups.setdefault(tuple(trial[name] for name in KEY if name != "seed"), []).append(trial)
    rows = []
    for (settings, workers, rate, epochs, _), group in groups.items():
        figures = [spread([100 * trial[name] for trial in group]) for name in ("held_out", "test", "best_test")]
        loss = f"{statistics.fmean(trial['loss'] for trial in group):.2f}"
        rows.append([f"`{settings}`", workers, f"{rate:.3g}", epochs, len(group), *figures, loss])
    return table(header, rows)


if __name__ == "__main__":
    with exit_with_message():
        main()
