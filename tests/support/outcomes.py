"""Outcomes of trials and studies by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psys.run.curves import EpochPoint
from psys.tradeoff.outcome import EndedTrial, Outcome, Study, WorkerTime


def bits(accuracy: float, images: int = 200) -> NDArray[np.bool_]:
    """Right for the first share of the images."""
    return np.arange(images) < round(accuracy * images)


def outcome(
    accuracies: Sequence[float | None] = (0.3, 0.5),
    seconds: float = 20.0,
    right: NDArray[np.bool_] | None = None,
    **fields: Any,
) -> Outcome:
    """A run with an evaluation at each epoch, the times evenly spread, and a test accuracy from `right` (or 0.5)."""
    right = bits(0.5) if right is None else right
    epochs = len(accuracies)
    points = tuple(
        EpochPoint(float(epoch), seconds * epoch / epochs, 2.0 / epoch, 0.2 * epoch, 2.2 / epoch, accuracy)
        for epoch, accuracy in enumerate(accuracies, 1)
    )
    values: dict[str, Any] = {
        "environment": {},
        "settings": {"snapshot_epochs": 1.0, "mode": "sync", "seed": 0},
        "points": points,
        "accuracy": float(right.mean()),
        "test_images": len(right),
        "right": right,
        "held_out_images": 100,
        "seconds": seconds,
        "images_per_second": 1000 / seconds,
        "workers": 2,
        "learning_rate": 0.1,
        "staleness": {0: 30, 1: 10},
        "worker_times": {"worker0": WorkerTime(8.0, 1.0, 1.0), "worker1": WorkerTime(6.0, 3.0, 1.0)},
        "batches": {"applied": 40, "reissued": 1, "duplicates": 0, "lost": 0},
        "late": {},
        "diverged": None,
    }
    return Outcome(**{**values, **fields})


def trial(arm: str, seed: int, ended: Outcome | None, condition: str = "uniform", **fields: Any) -> EndedTrial:
    """A trial that ended with an outcome, or failed."""
    values: dict[str, Any] = {"tuning": None, "reason": None if ended else "it was killed", "load": 0.02, "host": "h"}
    return EndedTrial(f"{arm}.{condition}.seed{seed}", arm, condition, seed, outcome=ended, **{**values, **fields})


def study(trials: Sequence[EndedTrial], **fields: Any) -> Study:
    """A study whose arms, conditions and seeds are those of its trials; the first trial's arm is the reference."""
    arms: Mapping[str, Mapping[str, Any]] = {each.arm: {"mode": each.arm} for each in trials}
    values: dict[str, Any] = {
        "name": "by-hand",
        "arms": arms,
        "reference": next(iter(arms), None),
        "conditions": tuple(dict.fromkeys(each.condition for each in trials)),
        "seeds": tuple(sorted({each.seed for each in trials})),
        "targets": (),
        "margin": None,
        "tuned": None,
        "tuning_trials": 0,
        "trials": tuple(trials),
    }
    return Study(**{**values, **fields})
