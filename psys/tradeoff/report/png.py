"""The main figures of a study as PNG, with a panel for each condition."""

from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from psys.tradeoff.analysis import Analysis, Condition
from psys.tradeoff.report.figures import QUANTITIES

_COLOURS = ("#0060a8", "#c44e00", "#00785a", "#a3418a", "#846300", "#2a86c4", "#4b4f57")  # of page.html
_STYLES = ("-", "--", ":", "-.", (0, (4, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(analysis: Analysis, folder: Path) -> None:
    """Write accuracy.png, final.png and curves.png: against wall-clock, at the end, and by epoch."""
    conditions = [condition for condition in analysis.conditions if condition.arms]
    if not conditions:
        return
    arms = list(analysis.study.arms)
    _panels(folder / "accuracy.png", conditions, lambda panel, each: _curves(panel, each, arms, "validation_accuracy"))
    _panels(folder / "final.png", conditions, lambda panel, condition: _final(panel, condition, arms))
    figure = Figure(figsize=(10, 3.4 * len(conditions) * 2), dpi=100, layout="constrained")
    grid = figure.subplots(2 * len(conditions), 2, squeeze=False).ravel()
    for number, condition in enumerate(conditions):
        for panel, quantity in zip(grid[4 * number :], QUANTITIES, strict=False):
            _curves(panel, condition, arms, quantity, by_epoch=True)
            panel.set_title(f"{condition.name}: {QUANTITIES[quantity]}", loc="left", fontsize=11)
    _legend(grid)
    figure.savefig(folder / "curves.png")


def _panels(path: Path, conditions: list[Condition], fill: Callable[[Axes, Condition], None]) -> None:
    figure = Figure(figsize=(6 * len(conditions), 4.2), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0]
    for panel, condition in zip(panels, conditions, strict=True):
        fill(panel, condition)
        panel.set_title(condition.name, loc="left", fontsize=11)
    _legend(panels)
    figure.savefig(path)


def _curves(panel: Axes, condition: Condition, arms: list[str], quantity: str, by_epoch: bool = False) -> None:
    for arm, result in condition.arms.items():
        number = arms.index(arm)
        colour = _COLOURS[number % len(_COLOURS)]
        points = [p for p in result.curve if getattr(p.mean, quantity) is not None]
        places = [point.mean.epoch if by_epoch else point.mean.train_seconds for point in points]
        panel.plot(
            places,
            [getattr(point.mean, quantity) for point in points],
            color=colour,
            linestyle=_STYLES[number % len(_STYLES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            label=arm,
        )
        low, high = ([getattr(getattr(point, end), quantity) for point in points] for end in ("low", "high"))
        panel.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    _frame(panel, "epoch" if by_epoch else "training time (s)", QUANTITIES[quantity])


def _final(panel: Axes, condition: Condition, arms: list[str]) -> None:
    for arm, result in condition.arms.items():
        number = arms.index(arm)
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        seconds, accuracy = result.seconds, result.accuracy
        places = list(seconds.by_seed.values()), [accuracy.by_seed[seed] for seed in seconds.by_seed]
        panel.plot(*places, marker, color=colour, markersize=4, alpha=0.5)
        panel.plot(seconds.summary.mean, accuracy.summary.mean, marker, color=colour, markersize=9, label=arm)
    _frame(panel, "training time (s)", "test accuracy")


def _legend(panels: Iterable[Axes]) -> None:
    """In the first panel, with the arms of all panels."""
    first, *_ = panels
    lines = {str(line.get_label()): line for panel in panels for line in panel.get_legend_handles_labels()[0]}
    first.legend(lines.values(), lines, frameon=False, fontsize=9)


def _frame(panel: Axes, x: str, y: str) -> None:
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    if y.endswith("accuracy"):
        panel.yaxis.set_major_formatter(PercentFormatter(xmax=1))
