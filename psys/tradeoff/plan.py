"""The trials of a study, in the order in which they run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psys.tradeoff.config import RunSettings, StudyConfig


@dataclass(frozen=True)
class Trial:
    """One run of one arm, condition and seed."""

    arm: str
    condition: str
    seed: int
    name: str
    """of its run directory"""
    settings: RunSettings
    """of its run, nested, without those that say where it lies"""
    faults: dict[str, Any]
    """its fault plan; empty: none"""
    tuning: Any = None
    """the value that it tries of the setting that is tuned; None: it is one of the study's trials"""


def tuning_trials(config: StudyConfig) -> list[Trial]:
    """The trials by which each arm chooses its value, in the first condition; arms alternate."""
    if config.tuning is None:
        return []
    condition = next(iter(config.stragglers))
    return [
        _trial(config, arm, condition, seed, config.tuning.values_of(arm)[number], f".value{number}")
        for seed in config.tuning.seeds
        for number in range(len(config.tuning.values_of(config.reference)))
        for arm in config.arms
    ]


def study_trials(config: StudyConfig, chosen: Mapping[str, Any]) -> list[Trial]:
    """The study's trials, `chosen`: each arm's value. Arms alternate and seeds come last: a part of it is balanced."""
    return [
        _trial(config, arm, condition, seed, chosen.get(arm))
        for seed in config.seeds
        for condition in config.stragglers
        for arm in config.arms
    ]


def choose(config: StudyConfig, accuracies: Mapping[str, float | None]) -> dict[str, Any]:
    """Each arm's value with the highest mean held-out accuracy over the tuning's seeds, the first of equal ones.

    accuracies: of each tuning trial, by name, 0 to 1; None: it failed, which counts as 0. Arms of which every trial
    failed have no value.
    """
    chosen: dict[str, Any] = {}
    if config.tuning is None:
        return chosen
    trials = tuning_trials(config)
    for arm in config.arms:
        totals = [
            (sum(accuracies[trial.name] or 0.0 for trial in trials if (trial.arm, trial.tuning) == (arm, value)), value)
            for value in config.tuning.values_of(arm)
        ]
        total, value = max(totals, key=lambda entry: entry[0])
        if total:
            chosen[arm] = value
    return chosen


def _trial(config: StudyConfig, arm: str, condition: str, seed: int, value: Any, suffix: str = "") -> Trial:
    return Trial(
        arm,
        condition,
        seed,
        f"{arm}.{condition}.seed{seed}{suffix}",
        config.settings(arm, value) | {"seed": seed},
        config.stragglers[condition],
        value if suffix else None,
    )
