"""The figures of a study, from the outcomes of its trials: what the report shows, and what may be claimed.

Pure: values in, values out. Accuracies are shares, times are seconds; intervals have 95 % confidence, those of median
times to target the level that they name.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from psys.run.curves import EpochPoint
from psys.tradeoff.outcome import EndedTrial, Outcome, Study, WorkerTime
from psys.tradeoff.statistics import (
    SEEDS_FOR_A_CLAIM,
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
)


@dataclass(frozen=True)
class OverSeeds:
    """A figure of an arm: the value of each seed, and their summary."""

    by_seed: Mapping[int, float]
    summary: Summary


@dataclass(frozen=True)
class Target:
    """When an arm's trials, and the mean of their curves, reached an accuracy on held-out images."""

    target: float
    by_seed: Mapping[int, TimeToTarget]
    summary: TargetSummary
    of_mean_curve: TimeToTarget | None
    """None: no evaluation has all seeds"""
    times_as_fast: Ratio | None
    """as the reference arm, paired by seed; None if a trial of either never reached the target: no time is known"""


@dataclass(frozen=True)
class Versus:
    """An arm against the reference arm in the same condition, paired by seed."""

    seeds: tuple[int, ...]
    accuracy: Difference
    interval: tuple[float, float] | None
    p_better: float | None
    """None below `SEEDS_FOR_A_CLAIM` seeds, and without right/wrong bits"""
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
    accuracy: OverSeeds
    seconds: OverSeeds
    images_per_second: OverSeeds
    worker_hours: OverSeeds
    curves: Mapping[int, tuple[EpochPoint, ...]]
    """by seed"""
    curve: tuple[MeanPoint, ...]
    targets: tuple[Target, ...]
    staleness: Mapping[int, int]
    """gradients of all trials by staleness in updates"""
    worker_times: Mapping[str, WorkerTime] | None
    """mean over the trials that have the worker; None: not recorded"""
    late: Mapping[str, int]
    """by worker: batches of all trials that the policy gave up as late"""
    versus: Versus | None
    """None for the reference arm, and for an arm that shares no seed with it"""
    unpaired: tuple[int, ...]
    """seeds without a finished trial of the reference arm, or of this arm: their trials are in no difference"""


@dataclass(frozen=True)
class Scaling:
    """Arms that differ in the number of workers only, and in the setting that was tuned."""

    arms: Mapping[str, int]
    """number of workers, the fewest first"""
    efficiency: Mapping[str, float]
    """images/s a worker relative to the fewest workers"""


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

    value: Any
    seed: int
    held_out_accuracy: float | None
    """None: the trial failed"""


@dataclass(frozen=True)
class Sweep:
    """The values that an arm tried of the setting that was tuned, and the one that its trials have."""

    points: tuple[SweepPoint, ...]
    chosen: Any
    """None: the arm has no finished trial"""


@dataclass(frozen=True)
class Analysis:
    """All figures of a study."""

    study: Study
    conditions: tuple[Condition, ...]
    comparisons: int
    """claims on accuracy that Holm's correction counts"""
    sweeps: Mapping[str, Sweep]
    """by arm"""
    failed: tuple[EndedTrial, ...]
    missing: tuple[tuple[str, str, int], ...]
    """arm, condition and seed of the trials that have not ended"""
    untuned: tuple[str, ...]
    """arms of which every tuning trial failed: they have no trials"""

    @property
    def versus(self) -> list[Versus]:
        """All comparisons with the reference arm."""
        return [arm.versus for condition in self.conditions for arm in condition.arms.values() if arm.versus]

    @property
    def held_out_images(self) -> int:
        """The most of a trial; 0: no images were held out."""
        return max((outcome.held_out_images for outcome in self.outcomes), default=0)

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all trials that have one, tuning trials too."""
        return [trial.outcome for trial in self.study.trials if trial.outcome]


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
    sweeps = {arm: sweep for arm in study.arms if (sweep := _sweep(study, arm)).points}
    untuned = tuple(
        arm
        for arm, sweep in sweeps.items()
        if len(sweep.points) == study.tuning_trials and not any(point.held_out_accuracy for point in sweep.points)
    )
    ended = {(trial.arm, trial.condition, trial.seed) for trial in compared}
    return Analysis(
        study=study,
        conditions=tuple(_with_claims(condition, claimed) for condition in conditions),
        comparisons=sum(claim.p is not None for claim in claimed.values()),
        sweeps=sweeps,
        failed=tuple(trial for trial in study.trials if trial.outcome is None),
        missing=tuple(
            (arm, condition, seed)
            for condition in study.conditions
            for arm in study.arms
            for seed in study.seeds
            if arm not in untuned and (arm, condition, seed) not in ended
        ),
        untuned=untuned,
    )


def _condition(study: Study, name: str, trials: Sequence[EndedTrial]) -> Condition:
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
    firsts = {arm: next(iter(outcomes[arm].values())) for arm in arms}
    return Condition(name, arms, tuple(pareto_front(points)), _scaling(study, arms, firsts))


def _arm(study: Study, outcomes: Mapping[int, Outcome], reference: Mapping[int, Outcome] | None) -> ArmResult:
    """The result of an arm from its outcomes by seed; `reference` is None for the reference arm itself."""
    timed = [target for target in study.targets if all(o.time_to(target) for o in outcomes.values())]
    staleness, late = Counter[int](), Counter[str]()
    for outcome in outcomes.values():
        staleness.update(outcome.staleness)
        late.update({worker: len(batches) for worker, batches in outcome.late.items()})
    return ArmResult(
        workers=max(outcome.workers for outcome in outcomes.values()),
        learning_rate=max(outcome.learning_rate for outcome in outcomes.values()),
        accuracy=_over_outcomes(outcomes, lambda outcome: outcome.accuracy, most=1.0),
        seconds=_over_outcomes(outcomes, lambda outcome: outcome.seconds),
        images_per_second=_over_outcomes(outcomes, lambda outcome: outcome.images_per_second),
        worker_hours=_over_outcomes(outcomes, lambda outcome: outcome.worker_hours),
        curves={seed: outcome.points for seed, outcome in outcomes.items()},
        curve=_mean_curve(list(outcomes.values())),
        targets=tuple(_target(target, outcomes, reference or {}) for target in timed),
        staleness=dict(sorted(staleness.items())),
        worker_times=_mean_worker_times([outcome.worker_times for outcome in outcomes.values()]),
        late=dict(sorted(late.items())),
        versus=_versus(outcomes, reference) if reference else None,
        unpaired=tuple(sorted(outcomes.keys() ^ reference.keys())) if reference is not None else (),
    )


def _over_outcomes(
    outcomes: Mapping[int, Outcome], figure: Callable[[Outcome], float], most: float = math.inf
) -> OverSeeds:
    """A figure that cannot be negative or above `most`: its interval is cut there."""
    by_seed = {seed: figure(outcome) for seed, outcome in outcomes.items()}
    summary = summarize(list(by_seed.values()))
    if summary.low is not None and summary.high is not None:
        summary = replace(summary, low=max(0.0, summary.low), high=min(most, summary.high))
    return OverSeeds(by_seed, summary)


def _versus(outcomes: Mapping[int, Outcome], reference: Mapping[int, Outcome]) -> Versus | None:
    """The paired comparison; its claim is made later, with those of all other arms and conditions."""
    seeds = tuple(seed for seed in outcomes if seed in reference)
    if not seeds:
        return None
    arms, references = [outcomes[seed] for seed in seeds], [reference[seed] for seed in seeds]
    bits = [outcome.right for outcome in (*arms, *references) if outcome.right is not None]
    images = {len(right) for right in bits}
    if len(bits) == 2 * len(seeds) and len(images) == 1 and images != {1}:
        accuracy = difference(np.stack(bits[: len(seeds)]), np.stack(bits[len(seeds) :]))
    else:
        accuracy = difference_of_figures([a.accuracy for a in arms], [r.accuracy for r in references])
    return Versus(
        seeds,
        accuracy,
        accuracy.interval,
        accuracy.p_greater() if accuracy.images and len(seeds) >= SEEDS_FOR_A_CLAIM else None,
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


def _evaluations(outcome: Outcome) -> dict[int, EpochPoint]:
    """The points of a run by the number of the evaluation that they belong to, which all seeds share.

    A round of updates may end a few batches after an epoch did, and a snapshot may be missing.
    """
    interval = outcome.settings["snapshot_epochs"]
    return {round(point.epoch / interval): point for point in outcome.points}


def _target(target: float, outcomes: Mapping[int, Outcome], reference: Mapping[int, Outcome]) -> Target:
    """Of outcomes that all have held-out images."""
    by_seed, of_reference = (
        {seed: time for seed, outcome in each.items() if (time := outcome.time_to(target))}
        for each in (outcomes, reference)
    )
    shared = [seed for seed in by_seed if seed in of_reference]
    all_reached = all(time.reached for time in (*by_seed.values(), *of_reference.values()))
    evaluations = [_evaluations(outcome) for outcome in outcomes.values()]
    common = _common(evaluations)
    seconds = [[points[number].train_seconds for number in common] for points in evaluations]
    accuracies = [[points[number].validation_accuracy for number in common] for points in evaluations]
    return Target(
        target,
        by_seed,
        summarize_times(list(by_seed.values())),
        mean_time_to_target(seconds, np.array(accuracies, np.float64), target) if common else None,
        ratio([of_reference[seed].seconds for seed in shared], [by_seed[seed].seconds for seed in shared])
        if shared and all_reached
        else None,
    )


def _common(evaluations: Sequence[Mapping[int, EpochPoint]]) -> list[int]:
    """Evaluations that all seeds have."""
    return sorted(set.intersection(*(set(points) for points in evaluations)))


def _mean_curve(outcomes: Sequence[Outcome]) -> tuple[MeanPoint, ...]:
    evaluations = [_evaluations(outcome) for outcome in outcomes]
    return tuple(
        MeanPoint(*(_over_points([points[number] for points in evaluations], of) for of in (np.mean, np.min, np.max)))
        for number in _common(evaluations)
    )


def _over_points(points: Sequence[EpochPoint], of: Callable[[Sequence[float]], np.floating]) -> EpochPoint:
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


def _scaling(study: Study, arms: Mapping[str, ArmResult], outcomes: Mapping[str, Outcome]) -> tuple[Scaling, ...]:
    """One for each group of arms that differ in the number of workers, and else in nothing but the tuned setting."""
    groups: dict[str, dict[str, int]] = {}
    for arm, outcome in outcomes.items():
        free = {"workers", "seed", study.tuned, *outcome.settings.get("followed", ())}  # what follows the workers
        same = {name: value for name, value in outcome.settings.items() if name not in free}
        groups.setdefault(json.dumps(same, sort_keys=True), {})[arm] = outcome.workers
    return tuple(
        Scaling(
            dict(sorted(group.items(), key=lambda entry: entry[1])),
            scaling_efficiency(
                {arm: (workers, arms[arm].images_per_second.summary.mean) for arm, workers in group.items()}
            ),
        )
        for group in groups.values()
        if len(set(group.values())) > 1
    )


def _sweep(study: Study, arm: str) -> Sweep:
    def best(trial: EndedTrial) -> float | None:
        points = trial.outcome.points if trial.outcome else ()
        return max((p.validation_accuracy for p in points if p.validation_accuracy is not None), default=None)

    of_arm = [trial for trial in study.trials if trial.arm == arm]
    points = [SweepPoint(trial.tuning, trial.seed, best(trial)) for trial in of_arm if trial.tuning is not None]
    used = [trial.outcome.settings for trial in of_arm if trial.tuning is None and trial.outcome]
    return Sweep(tuple(points), used[0].get(study.tuned or "") if used else None)
