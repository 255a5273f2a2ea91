"""The curves of a run as one picture: loss and accuracy, of training and validation, by epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from psys.errors import PsysError

# Okabe and Ito's palette: people with any kind of colour vision can tell the colours apart.
_TRAINING, _VALIDATION = "#0072B2", "#D55E00"
_INK, _FAINT, _SEAM = "#333333", "#DDDDDD", "#777777"
_SEAMS_LISTED, _CHARACTERS = 6, 170  # below the panels


class EpochPoint(NamedTuple):
    """The figures of a run at one version, usually at the end of an epoch; None where no images are held out."""

    epoch: float
    train_seconds: float  # wall-clock of training since the start, without evaluation
    train_loss: float | None  # None: not finite
    train_accuracy: float  # 0 to 1
    validation_loss: float | None
    validation_accuracy: float | None  # 0 to 1


def draw(
    epochs: Sequence[EpochPoint], path: Path, title: str, seams: Sequence[tuple[float, Sequence[str]]] = ()
) -> None:
    """Write a PNG, 1200 x 500 pixels: loss and accuracy side by side, the point of best validation accuracy marked.

    seams: epochs at which something changed, ascending, and what changed, in words: numbered lines in both panels, and
    a list below them, for which the picture is taller. Raises PsysError if there is no point to draw or `path` cannot
    be written.
    """
    if not epochs:
        raise PsysError(f"no curves to draw in {path}: the run has no point")
    listed = _list_of(seams)
    figure = Figure(figsize=(12, 5 + 0.18 * len(listed)), dpi=100, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=_INK)
    best = max(epochs, key=lambda point: -1.0 if point.validation_accuracy is None else point.validation_accuracy)
    loss_panel, accuracy_panel = figure.subplots(1, 2)
    for panel, quantity in ((loss_panel, "loss"), (accuracy_panel, "accuracy")):
        _frame(panel, epochs, seams)
        panel.set_title(quantity.capitalize(), fontsize=13, color=_INK, pad=10)
        for label, colour, prefix in (("training", _TRAINING, "train"), ("validation", _VALIDATION, "validation")):
            values = [(point.epoch, getattr(point, f"{prefix}_{quantity}")) for point in epochs]
            _line(panel, label, colour, [(epoch, value) for epoch, value in values if value is not None])
        _draw_seams(panel, [epoch for epoch, _ in seams])
        best_value = getattr(best, f"validation_{quantity}")
        if best_value is not None:
            shown = f"{best_value:.1%}" if quantity == "accuracy" else f"{best_value:.3f}"
            panel.axvline(best.epoch, color=_INK, linewidth=1, linestyle=":")
            label = f"best epoch {best.epoch:g}: {shown}"
            panel.plot(best.epoch, best_value, "o", color=_INK, fillstyle="none", markersize=12, label=label)
        panel.legend(frameon=False, fontsize=11, labelcolor=_INK)
    if listed:
        figure.supxlabel("\n".join(listed), x=0.01, ha="left", multialignment="left", fontsize=9, color=_INK)
    accuracy_panel.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise PsysError(f"cannot write {path}: {error.strerror}") from None


def _line(panel: Axes, label: str, colour: str, points: Sequence[tuple[float, float]]) -> None:
    if points:
        marker = "o" if len(points) <= 30 else None
        panel.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=2, label=label)


def _draw_seams(panel: Axes, epochs: Sequence[float]) -> None:
    """A line at each seam, with its number; of seams too close for two numbers, that of the later one."""
    right = panel.get_xlim()[1]
    for number, epoch in enumerate(epochs, 1):
        panel.axvline(epoch, color=_SEAM, linewidth=1)
        if number == len(epochs) or epochs[number] - epoch > 0.02 * right:
            panel.annotate(
                str(number),
                (epoch, 1),
                xycoords=panel.get_xaxis_transform(),
                xytext=(-2, -2),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=9,
                color=_SEAM,
            )


def _list_of(seams: Sequence[tuple[float, Sequence[str]]]) -> list[str]:
    """A line of text for each seam; the earliest of many are left out."""
    lines = [f"{number}  epoch {epoch:.4g}: {', '.join(changes)}" for number, (epoch, changes) in enumerate(seams, 1)]
    lines = [line if len(line) <= _CHARACTERS else f"{line[: _CHARACTERS - 1]}…" for line in lines]
    left_out = len(lines) - _SEAMS_LISTED
    return [f"(and {left_out} earlier)", *lines[left_out:]] if left_out > 0 else lines


def _frame(panel: Axes, epochs: Sequence[EpochPoint], seams: Sequence[tuple[float, Sequence[str]]]) -> None:
    """Axes: epochs below, the training time that they took above, a light grid."""
    ends = [0.0, *(point.epoch for point in epochs)]
    seconds = [0.0, *(point.train_seconds for point in epochs)]

    def time_at(epoch: float, _: float) -> str:
        return _duration(float(np.interp(epoch, ends, seconds))) if 0 <= epoch <= ends[-1] else ""

    panel.set_xlim(0, max([ends[-1], *(epoch for epoch, _ in seams)]) * 1.02)
    panel.set_xlabel("epoch (above: training time)", fontsize=11, color=_INK)
    clock = panel.secondary_xaxis("top")
    for axis in (panel.xaxis, clock.xaxis):
        axis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    clock.xaxis.set_major_formatter(time_at)
    clock.tick_params(labelsize=9, colors="#777777", length=0)
    clock.spines["top"].set_visible(False)
    panel.tick_params(labelsize=10, colors=_INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=_FAINT, linewidth=0.8)
    panel.set_axisbelow(True)


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
