"""The figures of a study, from the outcomes of its trials: what the report shows, and what may be claimed.

Pure: values in, values out. Accuracies are shares, times are seconds; all intervals have 95 % confidence.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from psys.run.curves import EpochPoint
from psys.tradeoff.outcome import Outcome, Study, Trial, WorkerTime
from psys.tradeoff.statistics import (
    Claim,
    Difference,
    Ratio,
    Summary,
    claims,
    difference,
    difference_of_figures,
    ratio,
    summarize,
)
from psys.tradeoff.times import (
    TargetSummary,
    TimeToTarget,
    mean_time_to_target,
    pareto_front,
    scaling_efficiency,
    summarize_times,
    time_to_target,
)


@dataclass(frozen=True)
class Figure:
    """A figure of an arm: the value of each seed, and their summary."""

    by_seed: Mapping[int, float]
    summary: Summary


@dataclass(frozen=True)
class Target:
    """When an arm's trials, and the mean of their curves, reached an accuracy on held-out images."""

    target: float
    by_seed: Mapping[int, TimeToTarget]
    summary: TargetSummary
    of_mean_curve: TimeToTarget
    times_as_fast: Ratio | None
    """as the reference arm, paired by seed; None if a trial of either never reached the target: no time is known"""


@dataclass(frozen=True)
class Versus:
    """An arm against the reference arm in the same condition, paired by seed."""

    seeds: tuple[int, ...]
    accuracy: Difference
    interval: tuple[float, float] | None
    p_better: float | None
    claim: Claim
    times_as_fast: Ratio
    """seconds of the reference over seconds of the arm"""


@dataclass(frozen=True)
class MeanPoint:
    """The mean over seeds at one evaluation point, and the lowest and highest seed; None if a seed lacks the figure."""

    mean: EpochPoint
    low: EpochPoint
    high: EpochPoint


@dataclass(frozen=True)
class ArmResult:
    """What an arm's finished trials in one condition reached. `curve` ends where the shortest trial ends."""

    workers: int
    learning_rate: float
    accuracy: Figure
    seconds: Figure
    images_per_second: Figure
    worker_hours: Figure
    curves: Mapping[int, tuple[EpochPoint, ...]]
    """by seed"""
    curve: tuple[MeanPoint, ...]
    targets: tuple[Target, ...]
    staleness: Mapping[int, int]
    """gradients of all trials by staleness in updates"""
    worker_times: Mapping[str, WorkerTime] | None
    """mean over the trials that have the worker; None: not recorded"""
    versus: Versus | None
    """None for the reference arm, and for an arm that shares no seed with it"""
    unpaired: tuple[int, ...]
    """seeds without a finished trial of the reference arm, or of this arm: their trials are in no difference"""


@dataclass(frozen=True)
class Scaling:
    """Arms that differ in the number of workers only: images/s a worker relative to the fewest workers."""

    arms: Mapping[int, str]
    """by workers"""
    efficiency: Mapping[int, float]


@dataclass(frozen=True)
class Condition:
    """The arms under one condition of the machine; an arm without a finished trial is not in `arms`."""

    name: str
    arms: Mapping[str, ArmResult]
    pareto: tuple[str, ...]
    scaling: tuple[Scaling, ...]


@dataclass(frozen=True)
class SweepPoint:
    """One trial of a tuning sweep: the value tried, and the best accuracy on held-out images."""

    value: float | str
    seed: int
    condition: str
    held_out_accuracy: float | None
    """None: the trial failed, or has no held-out images"""


@dataclass(frozen=True)
class Analysis:
    """All figures of a study."""

    study: Study
    conditions: tuple[Condition, ...]
    comparisons: int
    """claims on accuracy that Holm's correction counts"""
    sweep: Mapping[str, tuple[SweepPoint, ...]]
    """by arm"""
    failed: tuple[Trial, ...]
    missing: tuple[tuple[str, str, int], ...]
    """arm, condition and seed of the trials that have not ended"""


def analyze(study: Study) -> Analysis:
    """All figures of a study, of the trials that have ended."""
    compared = [trial for trial in study.trials if trial.tuning is None]
    conditions = [_condition(study, name, compared) for name in study.conditions]
    differences = {
        (condition.name, arm): result.versus.accuracy
        for condition in conditions
        for arm, result in condition.arms.items()
        if result.versus and result.versus.accuracy.images is not None
    }
    claimed = claims(differences, study.margin)
    ended = {(trial.arm, trial.condition, trial.seed) for trial in compared}
    return Analysis(
        study=study,
        conditions=tuple(_with_claims(condition, claimed) for condition in conditions),
        comparisons=sum(claim.p is not None for claim in claimed.values()),
        sweep={arm: points for arm in study.arms if (points := _sweep(study, arm))},
        failed=tuple(trial for trial in study.trials if trial.outcome is None),
        missing=tuple(
            (arm, condition, seed)
            for condition in study.conditions
            for arm in study.arms
            for seed in study.seeds
            if (arm, condition, seed) not in ended
        ),
    )


def _condition(study: Study, name: str, trials: Sequence[Trial]) -> Condition:
    outcomes: dict[str, dict[int, Outcome]] = {arm: {} for arm in study.arms}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        if trial.condition == name and trial.outcome:
            outcomes[trial.arm][trial.seed] = trial.outcome
    reference = outcomes.get(study.reference or "", {})
    arms = {
        arm: _arm(study, by_seed, None if arm == study.reference else reference)
        for arm, by_seed in outcomes.items()
        if by_seed
    }
    points = {arm: (result.seconds.summary.mean, result.accuracy.summary.mean) for arm, result in arms.items()}
    return Condition(name, arms, tuple(pareto_front(points)), _scaling(study, arms))


def _arm(study: Study, outcomes: Mapping[int, Outcome], reference: Mapping[int, Outcome] | None) -> ArmResult:
    """The result of an arm from its outcomes by seed; `reference` is None for the reference arm itself."""
    curve, held_out = _mean_curve(list(outcomes.values())), _held_out_points(outcomes)
    targets = tuple(
        _target(target, held_out, _held_out_points(reference or {}))
        for target in study.targets
        if len(held_out) == len(outcomes)
    )
    staleness: Counter[int] = Counter()
    for outcome in outcomes.values():
        staleness.update(outcome.staleness)
    return ArmResult(
        workers=max(outcome.workers for outcome in outcomes.values()),
        learning_rate=max(outcome.learning_rate for outcome in outcomes.values()),
        accuracy=_figure(outcomes, lambda outcome: outcome.accuracy),
        seconds=_figure(outcomes, lambda outcome: outcome.seconds),
        images_per_second=_figure(outcomes, lambda outcome: outcome.images_per_second),
        worker_hours=_figure(outcomes, lambda outcome: outcome.worker_hours),
        curves={seed: outcome.points for seed, outcome in outcomes.items()},
        curve=curve,
        targets=targets,
        staleness=dict(sorted(staleness.items())),
        worker_times=_mean_worker_times([outcome.worker_times for outcome in outcomes.values()]),
        versus=_versus(outcomes, reference) if reference else None,
        unpaired=tuple(sorted(outcomes.keys() ^ reference.keys())) if reference is not None else (),
    )


def _figure(outcomes: Mapping[int, Outcome], figure: Callable[[Outcome], float]) -> Figure:
    by_seed = {seed: figure(outcome) for seed, outcome in outcomes.items()}
    return Figure(by_seed, summarize(list(by_seed.values())))


def _versus(outcomes: Mapping[int, Outcome], reference: Mapping[int, Outcome]) -> Versus | None:
    """The paired comparison; its claim is made later, with those of all other arms and conditions."""
    seeds = tuple(seed for seed in outcomes if seed in reference)
    if not seeds:
        return None
    arms, references = [outcomes[seed] for seed in seeds], [reference[seed] for seed in seeds]
    bits = [outcome.right for outcome in (*arms, *references) if outcome.right is not None]
    if len(bits) == 2 * len(seeds) and len({len(right) for right in bits}) == 1:
        accuracy = difference(np.stack(bits[: len(seeds)]), np.stack(bits[len(seeds) :]))
    else:
        accuracy = difference_of_figures([a.accuracy for a in arms], [r.accuracy for r in references])
    return Versus(
        seeds,
        accuracy,
        accuracy.interval,
        accuracy.p_greater(),
        Claim("undecided", "undecided: right/wrong answers by test image were not recorded"),
        ratio([outcome.seconds for outcome in references], [outcome.seconds for outcome in arms]),
    )


def _with_claims(condition: Condition, claimed: Mapping[tuple[str, str], Claim]) -> Condition:
    arms = {
        arm: replace(result, versus=replace(result.versus, claim=claimed[condition.name, arm]))
        if result.versus and (condition.name, arm) in claimed
        else result
        for arm, result in condition.arms.items()
    }
    return replace(condition, arms=arms)


def _held_out_points(outcomes: Mapping[int, Outcome]) -> dict[int, dict[int, tuple[float, float]]]:
    """By seed and evaluation point: seconds and accuracy on held-out images; without the seeds that have none."""
    by_seed = {
        seed: {
            number: (point.train_seconds, point.validation_accuracy)
            for number, point in _evaluations(outcome).items()
            if point.validation_accuracy is not None
        }
        for seed, outcome in outcomes.items()
    }
    return {seed: points for seed, points in by_seed.items() if points}


def _evaluations(outcome: Outcome) -> dict[int, EpochPoint]:
    """The points of a run by the number of the evaluation that they belong to, which all seeds share.

    A round of updates may end a few batches after an epoch did, and a snapshot may be missing.
    """
    interval = outcome.settings["snapshot_epochs"]
    return {round(point.epoch / interval): point for point in outcome.points}


def _target(
    target: float,
    points: Mapping[int, Mapping[int, tuple[float, float]]],
    reference: Mapping[int, Mapping[int, tuple[float, float]]],
) -> Target:
    def times(curves: Mapping[int, Mapping[int, tuple[float, float]]]) -> dict[int, TimeToTarget]:
        by_seed = {seed: np.array(list(curve.values())) for seed, curve in curves.items()}
        return {seed: time_to_target(curve[:, 0], curve[:, 1], target) for seed, curve in by_seed.items()}

    by_seed, of_reference = times(points), times(reference)
    shared = [seed for seed in by_seed if seed in of_reference]
    all_reached = all(time.reached for time in (*by_seed.values(), *of_reference.values()))
    common = sorted(set.intersection(*(set(curve) for curve in points.values())))
    aligned = np.array([[curve[number] for number in common] for curve in points.values()])
    return Target(
        target,
        by_seed,
        summarize_times(list(by_seed.values())),
        mean_time_to_target(aligned[:, :, 0], aligned[:, :, 1], target),
        ratio([of_reference[seed].seconds for seed in shared], [by_seed[seed].seconds for seed in shared])
        if shared and all_reached
        else None,
    )


def _mean_curve(outcomes: Sequence[Outcome]) -> tuple[MeanPoint, ...]:
    evaluations = [_evaluations(outcome) for outcome in outcomes]
    common = sorted(set.intersection(*(set(points) for points in evaluations)))
    return tuple(
        MeanPoint(*(_over_seeds([points[number] for points in evaluations], of) for of in (np.mean, np.min, np.max)))
        for number in common
    )


def _over_seeds(points: Sequence[EpochPoint], of: Callable[[Sequence[float]], np.floating]) -> EpochPoint:
    figures: list[Any] = [None if None in values else float(of(values)) for values in zip(*points, strict=True)]
    return EpochPoint(*figures)


def _mean_worker_times(recorded: Sequence[Mapping[str, WorkerTime] | None]) -> dict[str, WorkerTime] | None:
    by_worker: dict[str, list[WorkerTime]] = {}
    for times in recorded:
        for worker, seconds in (times or {}).items():
            by_worker.setdefault(worker, []).append(seconds)
    if not by_worker:
        return None
    return {
        worker: WorkerTime(*(float(np.mean(part)) for part in zip(*times, strict=True)))
        for worker, times in by_worker.items()
    }


def _scaling(study: Study, arms: Mapping[str, ArmResult]) -> tuple[Scaling, ...]:
    """One for each group of two or more arms that differ in the number of workers only."""
    groups: dict[str, dict[int, str]] = {}
    for arm, result in arms.items():
        others = {name: value for name, value in study.arms[arm].items() if name != "workers"}
        groups.setdefault(json.dumps(others, sort_keys=True), {}).setdefault(result.workers, arm)
    return tuple(
        Scaling(
            dict(sorted(by_workers.items())),
            scaling_efficiency(
                {workers: arms[arm].images_per_second.summary.mean for workers, arm in by_workers.items()}
            ),
        )
        for by_workers in groups.values()
        if len(by_workers) > 1
    )


def _sweep(study: Study, arm: str) -> tuple[SweepPoint, ...]:
    def best(trial: Trial) -> float | None:
        points = trial.outcome.points if trial.outcome else ()
        return max((p.validation_accuracy for p in points if p.validation_accuracy is not None), default=None)

    return tuple(
        SweepPoint(trial.tuning, trial.seed, trial.condition, best(trial))
        for trial in study.trials
        if trial.arm == arm and trial.tuning is not None
    )
