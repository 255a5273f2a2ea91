"""What a study says about time: time to a target accuracy, the Pareto front of the arms, and scaling efficiency.

Accuracies and targets are shares (0 to 1), times are seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class TimeToTarget:
    """When a curve reached the target, or, if it did not, the time of its last evaluation, at which it is censored."""

    seconds: float
    reached: bool


@dataclass(frozen=True)
class TargetSummary:
    """The times to target of an arm's trials: how many reached it, and the Kaplan-Meier median in seconds.

    `median` is None if the estimated share of trials without the target stays above one half. `low` to `high`
    holds the median with confidence `level`: `high` is None if there is no upper limit, all three below five trials.
    """

    trials: int
    reached: int
    median: float | None
    low: float | None
    high: float | None
    level: float | None


def time_to_target(seconds: ArrayLike, accuracies: ArrayLike, target: float) -> TimeToTarget:
    """The time of the first evaluation at or above the target; times between evaluations are not interpolated.

    seconds, accuracies: (evaluations,); an accuracy that is NaN does not reach the target. ValueError if there is no
    evaluation, the two differ in length, the times do not increase, or the target is not above 0 and at most 1.
    """
    times, values = np.asarray(seconds, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if times.ndim != 1 or times.shape != values.shape or not len(times):
        raise ValueError(f"a curve has one accuracy for each time; got shapes {times.shape} and {values.shape}")
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError("the times of a curve are finite and increase")
    if not 0 < target <= 1:
        raise ValueError(f"a target accuracy is a share above 0 and at most 1; got {target}")
    hits = np.flatnonzero(values >= target)
    return TimeToTarget(float(times[hits[0]]), True) if len(hits) else TimeToTarget(float(times[-1]), False)


def mean_time_to_target(seconds: ArrayLike, accuracies: ArrayLike, target: float) -> TimeToTarget:
    """When the mean over seeds reached the target: a single evaluation of a single seed may reach it by chance.

    seconds, accuracies: (seeds, evaluations), the same evaluation points in each row; both are averaged over seeds.
    ValueError as `time_to_target`, or if there is no seed.
    """
    times, values = np.asarray(seconds, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if times.ndim != 2 or times.shape != values.shape or not len(times):
        raise ValueError(f"curves are arrays (seeds, evaluations); got shapes {times.shape} and {values.shape}")
    return time_to_target(times.mean(axis=0), values.mean(axis=0), target)


def summarize_times(times: Sequence[TimeToTarget]) -> TargetSummary:
    """Median time to target of an arm and its interval; trials that were censored count as long as they ran.

    The median is that of Kaplan and Meier, JASA 53 (1958), 457-481: the first time at which the estimated share of
    trials without the target is one half or less.

    The interval lies between two order statistics, and its confidence is a sum of binomial probabilities (Conover,
    Practical Nonparametric Statistics, 1999, section 3.2; without censoring, the interval of Brookmeyer and Crowley,
    Biometrics 38 (1982), 29-41, in its exact form). A censored trial counts as its end for the lower limit and as
    "never" for the upper limit. The true time lies between the two: the interval holds whatever the reason for the
    censoring, and at 3 to 10 trials, where Greenwood's variance is poor. Below five trials there is no interval; of
    five it is the range, with 93.75 %; above, the shortest with 95 % or more. ValueError if there is no trial.
    """
    if not times:
        raise ValueError("a summary of times to target needs one trial")
    reached = sum(time.reached for time in times)
    cut, level = _order_statistics(len(times))
    if not cut:
        return TargetSummary(len(times), reached, _kaplan_meier_median(times), None, None, None)
    low = sorted(time.seconds for time in times)[cut - 1]
    high = sorted(time.seconds if time.reached else math.inf for time in times)[-cut]
    upper = None if math.isinf(high) else high
    return TargetSummary(len(times), reached, _kaplan_meier_median(times), low, upper, level)


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Arms that no other arm beats, from the fastest to the slowest; points are (seconds, accuracy).

    An arm is beaten if another is at least as fast and at least as accurate, and better in one of the two.
    ValueError if a number is not finite.
    """
    if unfit := [arm for arm, point in points.items() if not all(map(math.isfinite, point))]:
        raise ValueError(f"seconds and accuracy of an arm are finite; they are not for {', '.join(unfit)}")

    def beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
        return other != point and other[0] <= point[0] and other[1] >= point[1]

    front = [arm for arm, point in points.items() if not any(beats(other, point) for other in points.values())]
    return sorted(front, key=lambda arm: points[arm])


def scaling_efficiency(rates: Mapping[str, tuple[int, float]]) -> dict[str, float]:
    """Images/s a worker, as a share of images/s a worker with the fewest workers; 1 is linear scaling.

    rates: workers and images/s by arm; of arms with the fewest workers, the mean counts. ValueError if there is none,
    or a number is not positive.
    """
    if not rates or not all(workers > 0 and 0 < rate < math.inf for workers, rate in rates.values()):
        raise ValueError(f"scaling needs positive images/s by positive numbers of workers; got {dict(rates)}")
    fewest = min(workers for workers, _ in rates.values())
    base = np.mean([rate / workers for workers, rate in rates.values() if workers == fewest])
    return {arm: rate / workers / float(base) for arm, (workers, rate) in rates.items()}


def _kaplan_meier_median(times: Sequence[TimeToTarget]) -> float | None:
    without = Fraction(1)  # exact, so that one half is one half
    for seconds in sorted({time.seconds for time in times if time.reached}):
        at_risk = sum(time.seconds >= seconds for time in times)
        hits = sum(time.reached and time.seconds == seconds for time in times)
        without *= Fraction(at_risk - hits, at_risk)
        if without <= Fraction(1, 2):
            return seconds
    return None


def _order_statistics(trials: int) -> tuple[int, float | None]:
    """The largest k for which the k-th smallest to k-th largest of n values hold the median with 95 %, and how surely.

    Of five values even the range holds it with only 1 - 2 / 32: that is accepted. 0 and None below five.
    """
    if trials < 5:
        return 0, None
    below = [math.comb(trials, k) / 2**trials for k in range(trials // 2)]
    cut = max([1, *(k for k in range(1, len(below) + 1) if 2 * sum(below[:k]) <= 0.05)])
    return cut, 1 - 2 * sum(below[:cut])
