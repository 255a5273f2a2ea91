"""The figures of a study against answers by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from psys.tradeoff.analysis import ArmResult, Condition, analyze
from psys.tradeoff.outcome import EndedTrial, Outcome, WorkerTime
from psys.tradeoff.statistics import holm
from psys.tradeoff.times import TimeToTarget
from tests.support.outcomes import bits, outcome, study, trial


def only(trials: list[EndedTrial], **fields: Any) -> Condition:
    (condition,) = analyze(study(trials, **fields)).conditions
    return condition


def test_figures_of_an_arm_are_those_of_its_seeds_and_their_mean() -> None:
    seconds = {3: 10.0, 5: 14.0, 8: 18.0}
    result = only([trial("sync", seed, outcome(seconds=each)) for seed, each in seconds.items()]).arms["sync"]
    assert result.seconds.by_seed == seconds
    assert (result.seconds.summary.mean, result.seconds.summary.sd) == (14.0, 4.0)
    assert result.seconds.summary.low == pytest.approx(14 - 4.3027 * 4 / math.sqrt(3), abs=1e-3)
    assert result.worker_hours.by_seed[8] == 2 * 18 / 3600
    assert result.accuracy.summary.mean == 0.5
    assert result.staleness == {0: 90, 1: 30}
    assert result.worker_times == {"worker0": WorkerTime(8.0, 1.0, 1.0), "worker1": WorkerTime(6.0, 3.0, 1.0)}


def test_interval_of_a_positive_figure_is_cut_at_zero() -> None:
    result = only([trial("sync", seed, outcome(seconds=each)) for seed, each in enumerate((1.0, 30.0))]).arms["sync"]
    assert result.seconds.summary.low == 0.0
    assert result.seconds.summary.high is not None
    assert result.seconds.summary.high > 30


def test_mean_curve_is_the_mean_over_seeds_at_each_evaluation() -> None:
    trials = [
        trial("sync", 0, outcome((0.2, 0.4), seconds=10.0)),
        trial("sync", 1, outcome((0.4, 0.8), seconds=20.0)),
    ]
    curve = only(trials).arms["sync"].curve
    assert [point.mean.train_seconds for point in curve] == [7.5, 15.0]
    assert [point.mean.validation_accuracy for point in curve] == pytest.approx([0.3, 0.6])
    assert [(point.low.validation_accuracy, point.high.validation_accuracy) for point in curve] == [
        (0.2, 0.4),
        (0.4, 0.8),
    ]


def test_mean_curve_ends_where_the_shortest_trial_ends_and_matches_late_evaluations() -> None:
    late = outcome((0.2, 0.4, 0.6))
    late = outcome(points=tuple(point._replace(epoch=point.epoch + 0.02) for point in late.points))
    curve = only([trial("ssp", 0, late), trial("ssp", 1, outcome((0.4, 0.6)))]).arms["ssp"].curve
    assert [point.mean.epoch for point in curve] == pytest.approx([1.01, 2.01])


def test_time_to_target_of_seeds_median_and_mean_curve() -> None:
    trials = [
        trial("sync", 0, outcome((0.3, 0.5), seconds=10.0)),
        trial("sync", 1, outcome((0.5, 0.6), seconds=20.0)),
        trial("sync", 2, outcome((0.1, 0.2), seconds=30.0)),
    ]
    target, never = only(trials, targets=(0.5, 0.9)).arms["sync"].targets
    assert target.by_seed == {0: TimeToTarget(10.0, True), 1: TimeToTarget(10.0, True), 2: TimeToTarget(30.0, False)}
    assert (target.summary.trials, target.summary.reached, target.summary.median) == (3, 2, 10.0)
    assert target.of_mean_curve == TimeToTarget(20.0, False)
    assert (never.summary.reached, never.summary.median) == (0, None)


@pytest.mark.parametrize(("last", "times_as_fast"), [(0.4, None), (0.5, 2.0)])
def test_speed_to_a_target_is_compared_only_if_every_trial_reached_it(last: float, times_as_fast: float | None) -> None:
    trials = [trial("sync", seed, outcome((0.3, 0.5), seconds=20.0)) for seed in (0, 1)]
    trials += [trial("async", seed, outcome((0.3, end), seconds=10.0)) for seed, end in ((0, 0.5), (1, last))]
    ratio = only(trials, targets=(0.5,)).arms["async"].targets[0].times_as_fast
    assert (ratio and ratio.mean) == pytest.approx(times_as_fast)


def test_arms_are_paired_by_seed_and_seeds_without_a_pair_are_dropped_and_named() -> None:
    trials = [
        *(trial("sync", seed, outcome(right=bits(0.5))) for seed in (0, 1, 2)),
        *(trial("async", seed, outcome(seconds=10.0, right=bits(0.6))) for seed in (1, 2)),
        trial("async", 0, None),
        trial("async", 3, outcome(seconds=1.0, right=bits(0.0))),
    ]
    result = only(trials).arms["async"]
    assert result.versus is not None
    assert result.versus.seeds == (1, 2)
    assert result.unpaired == (0, 3)
    assert result.versus.accuracy.mean == pytest.approx(0.1)
    assert result.versus.accuracy.images == 200
    assert result.versus.times_as_fast.mean == pytest.approx(2.0)


def test_failed_and_missing_trials_are_listed() -> None:
    trials = [trial("sync", 0, outcome()), trial("async", 0, None), trial("sync", 1, outcome())]
    analysis = analyze(study(trials))
    assert [failed.name for failed in analysis.failed] == ["async.uniform.seed0"]
    assert analysis.missing == (("async", "uniform", 1),)
    assert list(analysis.conditions[0].arms) == ["sync"]


def test_one_arm_and_one_seed_have_figures_without_intervals_and_no_comparison() -> None:
    result = only([trial("sync", 0, outcome())], targets=(0.4,)).arms["sync"]
    assert (result.accuracy.summary.low, result.versus, result.unpaired) == (None, None, ())
    assert result.targets[0].summary.low is None


def test_an_arm_that_shares_no_seed_with_the_reference_is_not_compared() -> None:
    result = only([trial("sync", 0, outcome()), trial("async", 1, outcome())]).arms["async"]
    assert (result.versus, result.unpaired) == (None, (0, 1))


@pytest.mark.parametrize(("recorded", "verdict"), [(True, "better"), (False, "undecided")])
def test_without_bits_a_difference_is_shown_and_nothing_is_claimed(recorded: bool, verdict: str) -> None:
    def ended(accuracy: float) -> Outcome:
        found = outcome(right=bits(accuracy))
        return found if recorded else replace(found, right=None)

    arms = (("sync", 0.4), ("async", 0.6))
    trials = [trial(arm, seed, ended(base + seed / 100)) for arm, base in arms for seed in range(5)]
    versus = only(trials).arms["async"].versus
    assert versus is not None
    assert versus.accuracy.mean == pytest.approx(0.2)
    assert versus.claim.verdict == verdict
    assert ("not recorded" in versus.claim.text) is not recorded


def test_claims_are_corrected_over_all_arms_and_conditions() -> None:
    rng = np.random.default_rng(1)
    trials = [
        trial(arm, seed, outcome(right=rng.random(200) < 0.5), condition)
        for condition in ("uniform", "slow")
        for arm in ("sync", "async", "ssp")
        for seed in range(4)
    ]
    analysis = analyze(study(trials))
    compared = [each.versus for condition in analysis.conditions for each in condition.arms.values() if each.versus]
    two_sided = [2 * min(each.p_better or 0, 1 - (each.p_better or 0)) for each in compared]
    assert analysis.comparisons == 4
    assert [each.claim.p for each in compared] == pytest.approx(holm(two_sided))


def test_pareto_front_and_scaling_of_arms_that_differ_in_workers_only() -> None:
    def ended(
        workers: int, seconds: float, images_per_second: float, accuracy: float, rate: float, mode: str
    ) -> Outcome:
        settings = {"snapshot_epochs": 1.0, "mode": mode, "seed": workers, "workers": workers, "rate": rate}
        settings |= {"followed": ["gap_aware"], "gap_aware": workers > 1}  # a default that follows the workers
        return replace(
            outcome(seconds=seconds, right=bits(accuracy), settings=settings),
            workers=workers,
            images_per_second=images_per_second,
        )

    trials = [
        trial("a4", 0, ended(4, 20.0, 200.0, 0.5, 0.1, "async")),
        trial("a1", 0, ended(1, 40.0, 100.0, 0.6, 0.2, "async")),
        trial("again", 0, ended(4, 25.0, 160.0, 0.4, 0.1, "async")),
        trial("slow", 0, ended(2, 50.0, 100.0, 0.4, 0.1, "sync")),
    ]
    condition = only(trials, tuned="rate")
    assert condition.pareto == ("a4", "a1")
    (group,) = condition.scaling
    assert list(group.arms.items()) == [("a1", 1), ("a4", 4), ("again", 4)]
    assert group.efficiency == {"a1": 1.0, "a4": 0.5, "again": 0.4}
    assert only(trials).scaling == ()


def test_an_arm_whose_tuning_trials_all_failed_is_not_missing() -> None:
    tried = [trial("sync", 0, outcome(), tuning=0.1), trial("sync", 0, outcome(), tuning=0.2)]
    failed = [trial("async", 0, None, tuning=0.1), trial("async", 0, None, tuning=0.2)]
    trials = [*tried, *failed, trial("sync", 0, outcome())]
    found = analyze(study(trials, tuned="rate", tuning_trials=2))
    assert (found.untuned, found.missing) == (("async",), ())
    going_on = analyze(study(trials, tuned="rate", tuning_trials=3))
    assert (going_on.untuned, going_on.missing) == ((), (("async", "uniform", 0),))


def test_tuning_trials_are_in_the_sweep_only() -> None:
    tried = [trial("sync", 0, outcome((0.2, best)), tuning=value) for value, best in ((0.01, 0.3), (0.1, 0.4))]
    final = trial("sync", 7, outcome(settings={"snapshot_epochs": 1.0, "schedule.learning_rate": 0.1}))
    analysis = analyze(study([*tried, final], seeds=(7,), tuned="schedule.learning_rate"))
    sweep = analysis.sweeps["sync"]
    assert [(point.value, point.held_out_accuracy) for point in sweep.points] == [(0.01, 0.3), (0.1, 0.4)]
    assert sweep.chosen == 0.1
    assert analysis.conditions[0].arms["sync"].accuracy.by_seed.keys() == {7}
    assert analysis.missing == ()


def test_runs_without_held_out_images_have_no_targets_and_a_curve_of_training() -> None:
    result: ArmResult = only([trial("sync", 0, outcome((None, None)))], targets=(0.5,)).arms["sync"]
    assert result.targets == ()
    assert [point.mean.validation_accuracy for point in result.curve] == [None, None]
    assert [point.mean.train_accuracy for point in result.curve] == [0.2, 0.4]


def test_interval_of_an_accuracy_is_cut_at_one() -> None:
    result = only([trial("sync", seed, outcome(right=bits(each))) for seed, each in ((0, 0.95), (1, 1.0))]).arms["sync"]
    assert result.accuracy.summary.high == 1.0
    assert result.accuracy.summary.low is not None
    assert result.accuracy.summary.low < 0.95


def test_one_test_image_gives_differences_of_accuracies() -> None:
    trials = [trial(arm, seed, outcome(right=bits(right, 1))) for arm, right in (("a", 0), ("b", 1)) for seed in (0, 1)]
    versus = only(trials).arms["b"].versus
    assert versus is not None
    assert (versus.accuracy.mean, versus.accuracy.images) == (1.0, None)
