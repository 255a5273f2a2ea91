"""Images per second of every augmentation on one core: `python -m benchmarks.augment [--batches 64 128] [--rounds 40]`.

Each arm turns real 32 x 32 images of the prepared sample into normalised views and applies its augmentation to every
view. The time includes unpacking the masks and normalisation. The process has one thread and keeps freed memory, as a
worker does. Rounds are interleaved. Time is CPU time of the process: it excludes time in which other processes have the
core, but other processes still slow down caches and memory. Results: results/<machine>/augment.json.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import ROOT, prepared_sample, results_path, table, write
from psys.augment.batch import AugmentConfig, augment
from psys.augment.foreground import MODES
from psys.compute.device import keep_freed_memory
from psys.data.store import PreparedStore
from psys.errors import exit_with_message

GOAL = 20_000  # images/s
STILL: dict[str, Any] = {"flip": False, "shift": 0}
ARMS: dict[str, dict[str, Any]] = {
    "nothing": STILL,
    "flip": {"shift": 0},
    "flip and shift": {},
    "rotation": {**STILL, "rotate_degrees": 10},
    "cutout": {**STILL, "cutout_size": 16},
    "batch augmentation, 4 views": {"views": 4},
    **{f"foreground: {mode}": {**STILL, "cutout_size": 16, "foreground": {mode: 1.0}} for mode in MODES},
    "foreground: swap, same class": {**STILL, "foreground": {"swap": 1.0, "swap_same_class": True}},
    "trio (configs/cifar10.yaml)": {
        **{"views": 2, "rotate_degrees": 10, "cutout_size": 16, "cutout_share": 0.5},
        "foreground": {"black": 0.125},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.augment", description=__doc__)
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=results_path("augment"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    prepared_sample(arguments.store)
    store = PreparedStore.open(arguments.store)
    results = {batch: measure(store, batch, arguments.rounds) for batch in arguments.batches}
    write(arguments.out, {"threads": 1, "microseconds_per_view": results})
    header = ["augmentation", *(f"{batch}: views/s, median (best)" for batch in results), f"{GOAL:,} reached"]
    print("\n".join(table(header, (report(arm, results) for arm in ARMS))))


def measure(store: PreparedStore, batch: int, rounds: int) -> dict[str, list[float]]:
    """CPU microseconds per view, by arm and round."""
    split = store.split("train")
    images, labels, masks, usable = (torch.from_numpy(np.array(column[:batch])) for column in split)
    seen = images, labels, masks, usable
    configs = {arm: AugmentConfig.model_validate(settings) for arm, settings in ARMS.items()}
    generator = torch.Generator().manual_seed(0)
    taken: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds + 2):
        for arm, config in configs.items():
            start = time.process_time()
            augment(*seen, config, len(store.classes), store.channel_mean, store.channel_std, generator)
            if number >= 2:  # the first rounds warm up
                taken[arm].append((time.process_time() - start) * 1e6 / (batch * config.views))
    return taken


def report(arm: str, results: dict[int, dict[str, list[float]]]) -> list[str]:
    """A row of the table: views/s by batch size, and whether the median or the best round reached the goal."""
    medians, best = ([1e6 / of(taken[arm]) for taken in results.values()] for of in (statistics.median, min))
    reached = "yes" if min(medians) >= GOAL else "in the best rounds" if min(best) >= GOAL else "no"
    return [arm, *(f"{m:,.0f} ({b:,.0f})" for m, b in zip(medians, best, strict=True)), reached]


if __name__ == "__main__":
    with exit_with_message():
        main()
