"""The curves of a run as one picture: loss and accuracy, of training and validation, by epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from psys.errors import PsysError

# Okabe and Ito's palette: people with any kind of colour vision can tell the colours apart.
_TRAINING, _VALIDATION = "#0072B2", "#D55E00"
_INK, _FAINT, _SEAM = "#333333", "#DDDDDD", "#777777"
_LABEL_LINES = 2  # of a seam
_LABEL_CHARACTERS = 44
_LABEL_WIDTH = 0.09  # of a panel


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

    seams: epochs at which something changed, ascending, and what changed, in words: a line with a label in each panel.
    Raises PsysError if there is no point to draw or `path` cannot be written.
    """
    if not epochs:
        raise PsysError(f"no curves to draw in {path}: the run has no point")
    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=_INK)
    best = max(epochs, key=lambda point: -1.0 if point.validation_accuracy is None else point.validation_accuracy)
    loss_panel, accuracy_panel = figure.subplots(1, 2)
    for panel, quantity in ((loss_panel, "loss"), (accuracy_panel, "accuracy")):
        _frame(panel, epochs, seams)
        panel.set_title(quantity.capitalize(), fontsize=13, color=_INK, pad=10)
        for label, colour, prefix in (("training", _TRAINING, "train"), ("validation", _VALIDATION, "validation")):
            values = [(point.epoch, getattr(point, f"{prefix}_{quantity}")) for point in epochs]
            _line(panel, label, colour, [(epoch, value) for epoch, value in values if value is not None])
        _draw_seams(panel, seams, top=quantity == "loss")  # where the curves are not, late in a training
        best_value = getattr(best, f"validation_{quantity}")
        if best_value is not None:
            shown = f"{best_value:.1%}" if quantity == "accuracy" else f"{best_value:.3f}"
            panel.axvline(best.epoch, color=_INK, linewidth=1, linestyle=":")
            label = f"best epoch {best.epoch:g}: {shown}"
            panel.plot(best.epoch, best_value, "o", color=_INK, fillstyle="none", markersize=12, label=label)
        # Below the panel it covers no label of a seam.
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 3} if seams else {}
        panel.legend(frameon=False, fontsize=11, labelcolor=_INK, **place)
    accuracy_panel.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise PsysError(f"cannot write {path}: {error.strerror}") from None


def _line(panel: Axes, label: str, colour: str, points: Sequence[tuple[float, float]]) -> None:
    if points:
        marker = "o" if len(points) <= 30 else None
        panel.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=2, label=label)


def _draw_seams(panel: Axes, seams: Sequence[tuple[float, Sequence[str]]], top: bool) -> None:
    """A line at each seam; the label runs along the line. Seams too close for two labels share one."""
    right = panel.get_xlim()[1]
    labels: list[tuple[float, list[str]]] = []
    for epoch, changes in seams:
        panel.axvline(epoch, color=_SEAM, linewidth=1)
        if labels and epoch - labels[-1][0] < _LABEL_WIDTH * right:
            labels[-1] = epoch, [*labels[-1][1], *changes]
        else:
            labels.append((epoch, list(changes)))
    for epoch, changes in labels:
        lines = [c if len(c) <= _LABEL_CHARACTERS else f"{c[: _LABEL_CHARACTERS - 1]}…" for c in changes]
        more = [f"+{len(lines) - _LABEL_LINES}"] if len(lines) > _LABEL_LINES else []
        before = epoch > (1 - _LABEL_WIDTH) * right  # there is no room behind the line
        panel.annotate(
            "\n".join([*lines[:_LABEL_LINES], *more]),
            (epoch, 0.98 if top else 0.02),
            xycoords=panel.get_xaxis_transform(),
            xytext=(-2 if before else 2, 0),
            textcoords="offset points",
            rotation=90,
            ha="right" if before else "left",
            va="top" if top else "bottom",
            multialignment="right" if top else "left",
            fontsize=9,
            color=_SEAM,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )


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
