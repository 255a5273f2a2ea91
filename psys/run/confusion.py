"""The confusion matrix of a run as a picture: which classes are taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from psys.errors import PsysError

_INK = "#333333"
_MOST_NUMBERED = 20  # classes whose cells still have room for a number
_NAME_CHARACTERS = 18
_NAMES = 128  # more class names than this overlap: every second, third, ... is shown then


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str], path: Path, title: str) -> None:
    """Write a PNG: rows are true classes, columns predicted classes, and a cell is shaded by its share of the row.

    confusion: (classes, classes) images. Raises PsysError if `path` cannot be written.
    """
    count = len(classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 4.0 + 0.5 * count)
    figure = Figure(figsize=(side + 1.5, side), dpi=100, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    panel = figure.subplots()
    # The square root lets rare confusions show beside the diagonal.
    image = panel.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    every = -(-count // _NAMES)
    names = [name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…" for name in classes]
    size = 10 if count <= _MOST_NUMBERED else max(6, 10 - count // 20)
    panel.set_xticks(range(0, count, every), names[::every], rotation=90, fontsize=size, color=_INK)
    panel.set_yticks(range(0, count, every), names[::every], fontsize=size, color=_INK)
    panel.set_xlabel("predicted class", fontsize=11, color=_INK)
    panel.set_ylabel("true class", fontsize=11, color=_INK)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    if count <= _MOST_NUMBERED:
        for row, column in np.argwhere(confusion):
            ink = "white" if shares[row, column] > 0.35 else _INK
            panel.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=9, color=ink)
    bar = figure.colorbar(image, ax=panel, shrink=0.5, ticks=[0, 0.1**0.5, 0.25**0.5, 0.5**0.5, 1])
    bar.ax.set_yticklabels(["0 %", "10 %", "25 %", "50 %", "100 %"], fontsize=9, color=_INK)
    bar.set_label("share of the true class", fontsize=10, color=_INK)
    bar.outline.set_visible(False)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise PsysError(f"cannot write {path}: {error.strerror}") from None
