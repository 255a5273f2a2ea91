"""The figures of a study as inline SVG: each function draws one figure of one condition in a given width."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psys.run.curves import EpochPoint
from psys.tradeoff.analysis import ArmResult, Condition, OverSeeds, Sweep
from psys.tradeoff.report.rows import Dot, Row, histograms, rows, shares
from psys.tradeoff.report.svg import Chart, Format, Point, dash_of
from psys.tradeoff.statistics import Summary
from psys.tradeoff.times import TimeToTarget
from psys.tradeoff.words import (
    IMAGES_PER_SECOND,
    Unit,
    confidence,
    count,
    duration,
    hours_unit,
    level_name,
    percent,
    points,
    target_name,
    times,
)

QUANTITIES = {
    "train_loss": "training loss",
    "validation_loss": "held-out loss",
    "train_accuracy": "training accuracy",
    "validation_accuracy": "held-out accuracy",
}
TIME_PARTS = ("compute", "wait", "communicate")
_MARKS = 8  # markers on a mean line at most: they name the arm, and dots show the values


@dataclass(frozen=True)
class Clock:
    """The unit of a time axis: what reads best for its longest time."""

    name: str
    seconds: float

    @classmethod
    def of(cls, longest: float) -> "Clock":
        """Seconds up to ten minutes, minutes up to five hours, hours above."""
        return cls("s", 1) if longest < 600 else cls("min", 60) if longest < 18000 else cls("h", 3600)

    def axis(self, what: str) -> tuple[str, Format]:
        """Label and format of an axis whose values are in seconds."""
        return f"{what} ({self.name})", lambda value: f"{value:g}"


def curves(condition: Condition, arms: Sequence[str], quantity: str, by: str, size: tuple[int, int]) -> str:
    """A quantity of all arms by "train_seconds" or "epoch": the range of seeds, and the mean.

    The page's script adds the seeds from the embedded curves: dots, thin lines and read-outs. arms: all of the study,
    whose place is the colour. Empty if no trial has the quantity.
    """
    clock = Clock.of(max(result.seconds.summary.mean for result in condition.arms.values()))
    unit = clock.seconds if by == "train_seconds" else 1.0

    def places(curve: Sequence[EpochPoint], at: Sequence[EpochPoint] | None = None) -> list[Point]:
        found = []
        for point, place in zip(curve, at or curve, strict=True):
            value = getattr(point, quantity)
            if value is not None:
                found.append((getattr(place, by) / unit, value))
        return found

    every = [p for result in condition.arms.values() for curve in result.curves.values() for p in places(curve)]
    if not every:
        return ""
    targets = [t.target for result in condition.arms.values() for t in result.targets]
    targets = sorted(set(targets)) if by == "train_seconds" else []
    is_share = quantity.endswith("accuracy")
    x_label = clock.axis("training time")[0] if by == "train_seconds" else "epoch"
    chart = Chart(
        size,
        [0.0, *(x for x, _ in every)],
        [*(y for _, y in every), *targets],
        (x_label, QUANTITIES[quantity]),
        (lambda value: f"{value:g}", target_name if is_share else lambda value: f"{value:g}"),
    )
    for target in targets:
        chart.note_line(target, f"target {target_name(target)}")
    for arm, result in condition.arms.items():
        number = arms.index(arm)
        means = [point.mean for point in result.curve]
        line, low, high = (places([getattr(p, w) for p in result.curve], means) for w in ("mean", "low", "high"))
        step = max(1, -(-len(line) // _MARKS))
        read_out = f"{arm}, mean of {count(len(result.curves), 'seed')}"
        chart.add(
            number,
            *([chart.band(low, high)] if len(result.curves) > 1 and line else []),
            *([chart.line(line, "line", dash_of(number))] if line else []),
            *(
                chart.mark(number, (x, y), f"{read_out}\n{x_label}: {x:.4g}\n{_read(quantity, y)}")
                for x, y in line[(len(line) - 1) % step :: step]
            ),
        )
    return chart.svg(
        f"{QUANTITIES[quantity]} by {x_label}",
        condition=condition.name,
        quantity=quantity,
        by=by,
        x=f"{chart.x(0):.6g} {(chart.x(1) - chart.x(0)) / unit:.6g}",
        y=f"{chart.y(0):.6g} {chart.y(1) - chart.y(0):.6g}",
    )


def time_to_target(condition: Condition, arms: Sequence[str], width: int) -> dict[float, str]:
    """By target: when each seed's trial reached it, the median of the arm, and its interval."""
    longest = max(max(result.seconds.by_seed.values()) for result in condition.arms.values())
    clock = Clock.of(longest)
    found: dict[float, list[Row]] = {}
    for arm, result in condition.arms.items():
        for target in result.targets:
            summary = target.summary
            median = "median not reached" if summary.median is None else f"median {duration(summary.median)}"
            figures, interval = f"{median}, reached by {summary.reached} of {summary.trials}", None
            if summary.low is not None and summary.level is not None:
                interval = (summary.low / clock.seconds, None if summary.high is None else summary.high / clock.seconds)
                figures += f", {level_name(summary.level)} interval"
            dots = [_time_dot(arm, seed, time, clock) for seed, time in target.by_seed.items()]
            mean = Dot(summary.median / clock.seconds, f"{arm}\n{figures}") if summary.median is not None else None
            found.setdefault(target.target, []).append(Row(arms.index(arm), arm, figures, dots, mean, interval))
    return {
        target: rows(
            width,
            content,
            clock.axis("training time"),
            f"time to {target_name(target)} accuracy on held-out images",
            include=(0.0, longest / clock.seconds),
        )
        for target, content in found.items()
    }


def _time_dot(arm: str, seed: int, time: TimeToTarget, clock: Clock) -> Dot:
    what = "reached at" if time.reached else "not reached by its end at"
    return Dot(time.seconds / clock.seconds, f"{arm}, seed {seed}\n{what} {duration(time.seconds)}", not time.reached)


def accuracy_against_time(condition: Condition, arms: Sequence[str], size: tuple[int, int]) -> str:
    """Test accuracy against training time: each seed, the means with their intervals, and the Pareto front."""
    clock = Clock.of(max(result.seconds.summary.mean for result in condition.arms.values()))
    centres, spreads, seeds = dict[str, Point](), dict[str, list[list[Point]]](), dict[str, dict[int, Point]]()
    for arm, result in condition.arms.items():
        time, accuracy = result.seconds.summary, result.accuracy.summary
        x, y = centres[arm] = (time.mean / clock.seconds, accuracy.mean)
        spreads[arm] = []
        if time.low is not None and time.high is not None and accuracy.low is not None and accuracy.high is not None:
            across = [(end / clock.seconds, y) for end in (time.low, time.high)]
            spreads[arm] = [across, [(x, accuracy.low), (x, accuracy.high)]]
        seeds[arm] = {
            seed: (seconds / clock.seconds, result.accuracy.by_seed[seed])
            for seed, seconds in result.seconds.by_seed.items()
        }
    every = [
        *centres.values(),
        *(point for lines in spreads.values() for line in lines for point in line),
        *(point for by_seed in seeds.values() for point in by_seed.values()),
    ]
    chart = Chart(
        size,
        _padded([x for x, _ in every]),
        _padded([y for _, y in every]),
        (clock.axis("training time")[0], "test accuracy"),
        (lambda value: f"{value:g}", target_name),
    )
    chart.front([centres[arm] for arm in condition.pareto])
    for arm, result in condition.arms.items():
        number = arms.index(arm)
        on_front = "\non the Pareto front" if arm in condition.pareto else ""
        time, accuracy = result.seconds.summary, result.accuracy.summary
        chart.add(
            number,
            *(chart.line(line, "interval") for line in spreads[arm]),
            *(
                chart.mark(
                    number,
                    point,
                    f"{arm}, seed {seed}\n{percent(point[1])} in {duration(result.seconds.by_seed[seed])}",
                    "seed",
                )
                for seed, point in seeds[arm].items()
            ),
            chart.mark(
                number,
                centres[arm],
                f"{arm}\n{percent(accuracy.mean)} in {duration(time.mean)}{on_front}",
                "mark large",
            ),
        )
    return chart.svg("test accuracy against training time")


def differences(condition: Condition, arms: Sequence[str], reference: str, margin: float | None, width: int) -> str:
    """The difference in test accuracy of each arm to the reference, with interval and P(better)."""
    content = []
    for arm, result in condition.arms.items():
        if versus := result.versus:
            mean = 100 * versus.accuracy.mean
            figures = f"{points(versus.accuracy.mean)} points"
            interval = None
            if versus.interval:
                low, high = versus.interval
                interval = (100 * low, 100 * high)
                figures += f" ({points(low)} to {points(high)})"
            if versus.p_better is not None:
                figures += f", P(better) {confidence(versus.p_better)}"
            other = condition.arms[reference].accuracy.by_seed
            dots = [
                Dot(100 * (value - other[seed]), f"{arm}, seed {seed}\n{points(value - other[seed])} points")
                for seed, value in result.accuracy.by_seed.items()
                if seed in versus.seeds
            ]
            tip = f"{arm} minus {reference}\n{figures}\n{versus.claim.text}"
            content.append(Row(arms.index(arm), arm, figures, dots, Dot(mean, tip), interval))
    if not content:
        return ""
    axis = (
        f"points of test accuracy more than {reference}",
        lambda value: f"{value:+g}".replace("-", "−") if value else "0",
    )
    spread = None if margin is None else 100 * margin
    include = (0.0,) if spread is None else (-spread, spread)
    return rows(width, content, axis, "differences in accuracy", include=include, origin=0.0, margin=spread)


def speed_ratios(condition: Condition, arms: Sequence[str], reference: str, width: int) -> str:
    """How many times as fast as the reference each arm trained."""
    content = []
    for arm, result in condition.arms.items():
        if versus := result.versus:
            ratio = versus.times_as_fast
            figures = f"{times(ratio.mean)} times as fast"
            interval = None
            if ratio.low is not None and ratio.high is not None:
                interval = (ratio.low, ratio.high)
                figures += f" ({times(ratio.low)} to {times(ratio.high)})"
            other = condition.arms[reference].seconds.by_seed
            dots = [
                Dot(other[seed] / value, f"{arm}, seed {seed}\n{times(other[seed] / value)} times as fast")
                for seed, value in result.seconds.by_seed.items()
                if seed in versus.seeds
            ]
            content.append(Row(arms.index(arm), arm, figures, dots, Dot(ratio.mean, f"{arm}\n{figures}"), interval))
    if not content:
        return ""
    axis = (f"times as fast as {reference} (logarithmic)", lambda value: f"{value:g}")
    return rows(width, content, axis, "training speed relative to the reference", include=(0.5, 2), origin=1, log=True)


def figure_rows(
    condition: Condition,
    arms: Sequence[str],
    of: Callable[[ArmResult], OverSeeds],
    unit: Callable[[float], Unit],
    label: str,
    width: int,
) -> str:
    """A figure of each arm: each seed, the mean and its interval. unit: of a mean."""
    content = []
    for arm, result in condition.arms.items():
        figure = of(result)
        summary = figure.summary
        text = unit(summary.mean).text
        dots = [Dot(value, f"{arm}, seed {seed}\n{text(value)}") for seed, value in figure.by_seed.items()]
        interval = None if summary.low is None else (summary.low, summary.high)
        shown = with_interval(summary, unit(summary.mean))
        content.append(Row(arms.index(arm), arm, shown, dots, Dot(summary.mean, f"{arm}\nmean {shown}"), interval))
    return rows(width, content, (label, lambda value: f"{value:g}"), label, include=(0.0,))


def with_interval(summary: Summary, unit: Unit) -> str:
    """A mean with its interval, where there is one: 12.6 s (11.0 to 14.1)."""
    if summary.low is None or summary.high is None:
        return unit.text(summary.mean)
    return f"{unit.text(summary.mean)} ({unit.number(summary.low)} to {unit.number(summary.high)})"


def staleness(condition: Condition, arms: Sequence[str], width: int) -> str:
    """How stale the gradients of each arm were: the share of each staleness, none grouped."""
    content = []
    for arm, result in condition.arms.items():
        total = sum(result.staleness.values())
        mean = sum(number * gradients for number, gradients in result.staleness.items()) / total
        figures = f"mean {mean:.2f}, most {max(result.staleness)}"
        by_number = {number: gradients / total for number, gradients in result.staleness.items()}
        content.append((arms.index(arm), arm, figures, by_number))
    return histograms(width, content, ("staleness (updates)", lambda value: f"{value:g}"), "staleness of gradients")


def worker_times(condition: Condition, arms: Sequence[str], width: int) -> str:
    """Where each worker's time went; empty if no trial recorded it."""
    content = []
    for arm, result in condition.arms.items():
        for worker, seconds in (result.worker_times or {}).items():
            total = sum(seconds)
            parts = [
                (part, value / total, f"{arm}, {worker}\n{part}: {duration(value)}, {percent(value / total)}")
                for part, value in zip(TIME_PARTS, seconds, strict=True)
                if total
            ]
            figures = ", ".join(f"{part} {100 * share:.0f} %" for part, share, _ in parts)
            content.append((arms.index(arm), f"{arm}, {worker}", figures, parts))
    if not content:
        return ""
    return shares(width, content, ("share of the worker's time", target_name), "where the workers' time went")


def scaling(condition: Condition, arms: Sequence[str], number: int, size: tuple[int, int]) -> str:
    """Images/s by workers of the arms of one group, with the line of linear scaling."""
    group = condition.scaling[number]
    rates = {arm: condition.arms[arm].images_per_second for arm in group.arms}
    first, fewest = next(iter(group.arms.items()))
    base = rates[first].summary.mean / group.efficiency[first]
    linear = [(float(workers), base * workers / fewest) for workers in group.arms.values()]
    every = [*(y for _, y in linear), *(value for figure in rates.values() for value in figure.by_seed.values())]
    chart = Chart(
        size,
        [0.0, 1.05 * max(group.arms.values())],
        [0.0, *every],
        ("workers", "images/s"),
        (lambda value: f"{value:g}", lambda value: f"{value:g}"),
        x_ticks=sorted(set(group.arms.values())),
    )
    chart.front(linear, "linear scaling")
    for arm, workers in group.arms.items():
        index, figure = arms.index(arm), rates[arm]
        tip = f"{arm}\n{figure.summary.mean:.0f} images/s, efficiency {percent(group.efficiency[arm])}"
        chart.add(
            index,
            *(
                chart.mark(index, (workers, v), f"{arm}, seed {s}\n{v:.0f} images/s", "seed")
                for s, v in figure.by_seed.items()
            ),
            chart.mark(index, (workers, figure.summary.mean), tip, "mark large"),
        )
    return chart.svg("images per second by workers")


def sweep(arm: str, number: int, tried: Sweep, include: Sequence[float], width: int) -> str:
    """The best held-out accuracy of each value that an arm tried, and the value that its trials have."""
    values: list[Any] = []
    for point in tried.points:
        if point.value not in values:
            values.append(point.value)
    content = []
    for value in values:
        points = [point for point in tried.points if point.value == value]
        dots = [
            Dot(point.held_out_accuracy, f"{arm}, {value}, seed {point.seed}\n{percent(point.held_out_accuracy)}")
            for point in points
            if point.held_out_accuracy is not None
        ]
        failed = len(points) - len(dots)
        mean = sum(dot.value for dot in dots) / len(points) if dots else None  # as the choice has it: failed ones are 0
        figures = "failed" if mean is None else percent(mean)
        if dots and failed:
            figures += f", {failed} of {len(points)} failed and counted as 0"
        name = f"{value}  ← chosen" if value == tried.chosen else str(value)
        content.append(Row(number, name, figures, dots, None if mean is None else Dot(mean, f"mean {figures}")))
    return rows(width, content, ("best held-out accuracy", target_name), f"tuning of {arm}", include=include)


def _padded(values: Sequence[float]) -> list[float]:
    """The values' range with room for the marks at its ends."""
    room = 0.04 * (max(values) - min(values))
    return [min(values) - room, max(values) + room]


def _read(quantity: str, value: float) -> str:
    shown = percent(value) if quantity.endswith("accuracy") else f"{value:.4f}"
    return f"{QUANTITIES[quantity]}: {shown}"


FIGURES: Mapping[str, tuple[Callable[[ArmResult], OverSeeds], Callable[[float], Unit], str]] = {
    "images_per_second": (lambda result: result.images_per_second, lambda value: IMAGES_PER_SECOND, "images/s"),
    "worker_hours": (lambda result: result.worker_hours, hours_unit, "worker-hours"),
}
"""Figures that `figure_rows` shows: where they are, the unit of a mean, and the label of the axis."""
