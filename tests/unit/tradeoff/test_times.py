"""Time to target, Kaplan-Meier medians, the Pareto front and scaling efficiency against answers by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from psys.tradeoff.times import (
    TimeToTarget,
    mean_time_to_target,
    pareto_front,
    scaling_efficiency,
    summarize_times,
    time_to_target,
)


def hits(*seconds: float) -> list[TimeToTarget]:
    return [TimeToTarget(time, True) for time in seconds]


def censored(*seconds: float) -> list[TimeToTarget]:
    return [TimeToTarget(time, False) for time in seconds]


def test_target_is_reached_at_the_first_evaluation_at_or_above_it() -> None:
    seconds, accuracies = [10, 20, 30, 40], [0.2, 0.5, 0.4, 0.6]
    assert time_to_target(seconds, accuracies, 0.5) == TimeToTarget(20, True)
    assert time_to_target(seconds, accuracies, 0.45) == TimeToTarget(20, True)
    assert time_to_target(seconds, accuracies, 0.51) == TimeToTarget(40, True)


def test_curve_below_the_target_is_censored_at_its_last_evaluation() -> None:
    assert time_to_target([10, 20], [0.2, 0.3], 0.5) == TimeToTarget(20, False)
    assert time_to_target([10, 20], [math.nan, math.nan], 0.5) == TimeToTarget(20, False)


def test_mean_curve_needs_more_than_one_seed_that_hits_by_chance() -> None:
    seconds = [[10, 20, 30], [12, 22, 32], [14, 24, 34]]
    accuracies = [[0.6, 0.4, 0.55], [0.3, 0.4, 0.5], [0.3, 0.4, 0.5]]
    assert time_to_target(seconds[0], accuracies[0], 0.5) == TimeToTarget(10, True)
    assert mean_time_to_target(seconds, accuracies, 0.5) == TimeToTarget(32, True)
    assert mean_time_to_target(seconds, accuracies, 0.6) == TimeToTarget(32, False)


def test_kaplan_meier_median_counts_censored_trials_as_long_as_they_ran() -> None:
    # Without the target after 1, 3, 5: 5/6, 5/6 * 3/4 = 5/8, 5/8 * 1/2 = 5/16.
    times = hits(1, 3, 5) + censored(2, 4, 6)
    assert summarize_times(times).median == 5
    # Dropping the censored trials would answer 3.
    assert summarize_times(hits(1, 3, 5)).median == 3


def test_trial_censored_when_another_reaches_the_target_is_still_at_risk() -> None:
    # 2/3 after 1 with three at risk, then 1/3.
    assert summarize_times(hits(1) + censored(1) + hits(2)).median == 2


def test_median_of_an_even_number_is_the_time_at_which_half_have_reached_the_target() -> None:
    assert summarize_times(hits(4, 1, 3, 2)).median == 2
    assert summarize_times(hits(*range(1, 11))).median == 5
    assert summarize_times(hits(1, 2) + censored(9, 9)).median == 2


def test_median_does_not_exist_where_most_trials_never_reached_the_target() -> None:
    few = summarize_times(hits(1, 2) + censored(9, 9, 9))
    assert (few.trials, few.reached, few.median) == (5, 2, None)
    assert (few.low, few.high, few.level) == (1, None, 0.9375)
    assert summarize_times(censored(9)).median is None


def test_interval_of_the_median_is_the_one_of_order_statistics() -> None:
    assert [summarize_times(hits(*range(trials))).level for trials in (1, 4, 5, 6)] == [None, None, 0.9375, 0.96875]
    nine, ten = summarize_times(hits(*range(9))), summarize_times(hits(*range(10)))
    assert (nine.low, nine.high, nine.level) == (1, 7, 1 - 20 / 512)
    assert (ten.low, ten.high, ten.level) == (1, 8, 1 - 22 / 1024)


def test_censored_trial_lowers_the_lower_limit_and_removes_the_upper() -> None:
    summary = summarize_times(hits(10, 11, 12, 13, 14) + censored(5))
    assert (summary.low, summary.high) == (5, None)


@pytest.mark.parametrize("trials", [5, 8, 10])
def test_interval_covers_the_median_of_censored_times_in_at_least_its_level_of_studies(trials: int) -> None:
    rng = np.random.default_rng(25)
    covered = 0
    for _ in range(2000):
        times, ends = rng.exponential(1, trials).tolist(), rng.uniform(0.5, 3, trials).tolist()
        study = [TimeToTarget(min(time, end), time <= end) for time, end in zip(times, ends, strict=True)]
        summary = summarize_times(study)
        assert summary.low is not None
        covered += summary.low <= math.log(2) <= (summary.high or math.inf)
    assert summary.level is not None
    assert covered / 2000 >= summary.level - 0.01


def test_pareto_front_holds_the_arms_that_no_arm_beats() -> None:
    arms = {
        "slow": (30.0, 0.70),
        "fast": (10.0, 0.60),
        "beaten": (31.0, 0.69),
        "same time": (10.0, 0.59),
        "between": (20.0, 0.65),
        "twin": (20.0, 0.65),
        "same accuracy": (21.0, 0.65),
    }
    assert pareto_front(arms) == ["fast", "between", "twin", "slow"]
    assert pareto_front({}) == []


def test_scaling_efficiency_is_relative_to_the_fewest_workers() -> None:
    assert scaling_efficiency({"c": (4, 300.0), "a": (1, 100.0), "b": (2, 200.0)}) == {"a": 1, "b": 1, "c": 0.75}
    assert scaling_efficiency({"a": (2, 200.0), "b": (8, 400.0), "c": (2, 600.0)}) == {"a": 0.5, "b": 0.25, "c": 1.5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: time_to_target([], [], 0.5), "one accuracy for each time"),
        (lambda: time_to_target([1, 2], [0.5], 0.5), "one accuracy for each time"),
        (lambda: time_to_target([2, 1], [0.5, 0.6], 0.5), "increase"),
        (lambda: time_to_target([1], [0.5], 50), "share above 0"),
        (lambda: mean_time_to_target([1, 2], [0.1, 0.2], 0.5), "seeds, evaluations"),
        (lambda: mean_time_to_target(np.ones((0, 3)), np.ones((0, 3)), 0.5), "seeds, evaluations"),
        (lambda: summarize_times([]), "one trial"),
        (lambda: pareto_front({"arm": (math.nan, 0.5)}), "not for arm"),
        (lambda: scaling_efficiency({}), "positive"),
        (lambda: scaling_efficiency({"a": (0, 1.0)}), "positive"),
    ],
)
def test_wrong_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
