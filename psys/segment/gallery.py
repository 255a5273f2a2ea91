"""A contact sheet of a store's masks, for the eye: image | outline | foreground, the doubtful ones first."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.store import PreparedStore

CELLS, COLUMNS, DOUBTFUL = 60, 6, 18
PICTURE = 96  # pixels on the sheet, each of the three
CAPTION = 16
OUTLINE, NOTHING = (255, 230, 0), (255, 0, 255)


def draw_gallery(store: PreparedStore, seed: int) -> Path:
    """Write gallery.png into the store's folder: training images with extreme masks first, then a random choice."""
    shares = store.quality("train")[:, 0]
    chosen = _choose(shares, store.split("train").usable, np.random.default_rng(seed))
    cells = [_cell(store, int(row), float(shares[row])) for row in chosen]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % COLUMNS)
    lines = [np.concatenate(cells[first : first + COLUMNS], axis=1) for first in range(0, len(cells), COLUMNS)]
    path = store.path / "gallery.png"
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(lines), cv2.COLOR_RGB2BGR))
    return path


def _choose(
    shares: NDArray[np.float32], usable: NDArray[np.bool_], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Rows to show: a third each unusable, smallest and largest share, without repetition, then random others."""
    third = DOUBTFUL // 3
    order = np.argsort(shares, kind="stable")
    doubtful = np.concatenate([np.flatnonzero(~usable)[:third], order[:third], order[::-1][:third]])
    doubtful = doubtful[np.sort(np.unique(doubtful, return_index=True)[1])]
    others = np.setdiff1d(np.arange(len(shares)), doubtful)
    return np.concatenate([doubtful, generator.permutation(others)[: CELLS - len(doubtful)]])


def _cell(store: PreparedStore, row: int, share: float) -> NDArray[np.uint8]:
    split = store.split("train")
    height, width = store.image_size
    bits = np.unpackbits(split.masks[row], count=height * width).reshape(height, width)
    image = cv2.resize(np.asarray(split.images[row]), (PICTURE, PICTURE), interpolation=cv2.INTER_CUBIC)
    mask = np.asarray(cv2.resize(bits, (PICTURE, PICTURE), interpolation=cv2.INTER_NEAREST))
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlined = cv2.drawContours(np.array(image), outlines, -1, OUTLINE, 1)
    foreground = np.where(mask[..., None] > 0, image, np.array(NOTHING, np.uint8))
    caption = np.full((CAPTION, 3 * PICTURE, 3), 40 if split.usable[row] else 120, np.uint8)
    text = f"{store.classes[split.labels[row]]} {share:.0%}" + ("" if split.usable[row] else " not used")
    cv2.putText(caption, text, (3, CAPTION - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    cell = np.concatenate([np.concatenate([image, outlined, foreground], axis=1), caption])
    return np.asarray(cv2.copyMakeBorder(cell, 1, 1, 1, 1, cv2.BORDER_CONSTANT), np.uint8)
