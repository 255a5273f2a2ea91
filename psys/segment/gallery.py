"""The masks of a store for the eye, the doubtful ones first: gallery.html to browse and gallery.png at a glance."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.store import PreparedStore
from psys.segment.page import write_page

WORST, RANDOM = 180, 60  # shown at most, whatever the size of the store
SHEET_CELLS, SHEET_COLUMNS = 60, 6
PICTURE, CAPTION = 96, 16  # pixels on the sheet; pictures of the page are no larger
OUTLINE, NOTHING = (255, 230, 0), (255, 0, 255)


class GalleryItem(NamedTuple):
    """One training image with its mask."""

    row: int  # in the store
    label: int
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    mask: NDArray[np.bool_]  # (H, W)
    usable: bool
    figures: dict[str, float]  # of quality, 0..1
    doubt: float  # 0..1
    is_random: bool  # drawn from those that are not among the worst


def draw_gallery(store: PreparedStore, seed: int) -> Path:
    """Write gallery.html and gallery.png into the store's folder: the worst training images, then a random choice.

    Worst are those whose mask is not usable, then those that rank worst on average over the figures of quality. Returns
    the page's path; neither file grows with the store.
    """
    figures = dict(zip(store.quality_names, store.quality("train").T, strict=True))
    split = store.split("train")
    doubts = doubt(figures)
    order = np.lexsort((-doubts, np.asarray(split.usable)))
    worst, others = order[:WORST], order[WORST:]
    chosen = np.random.default_rng(seed).choice(others, min(RANDOM, len(others)), replace=False)
    height, width = store.image_size
    cells = [
        GalleryItem(
            row,
            int(split.labels[row]),
            np.asarray(split.images[row]),
            np.unpackbits(split.masks[row], count=height * width).reshape(height, width).astype(np.bool_),
            bool(split.usable[row]),
            {name: float(values[row]) for name, values in figures.items()},
            float(doubts[row]),
            place >= len(worst),
        )
        for place, row in enumerate([*worst.tolist(), *chosen.tolist()])
    ]
    _draw_sheet(cells, store.classes, store.path / "gallery.png")
    write_page(cells, store.classes, store.path, len(doubts), int(np.sum(~split.usable)), PICTURE)
    return store.path / "gallery.html"


def doubt(figures: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """Mean rank of each mask over the figures, (N,): 0 is best and 1 worst in all of them; equal values share a rank.

    Bad are a share far from the usual one, much border contact, little compactness and little colour separation.
    """
    ranks = []
    for name, values in figures.items():
        badness = np.abs(values - np.median(values)) if name == "share" else values
        _, place, counts = np.unique(badness, return_inverse=True, return_counts=True)
        below = np.cumsum(counts) - counts
        rank = (below + (counts - 1) / 2)[place] / max(len(values) - 1, 1)
        ranks.append(1 - rank if name in ("compactness", "colour_separation") else rank)
    return np.asarray(np.mean(ranks, axis=0), np.float64)


def _draw_sheet(cells: list[GalleryItem], classes: tuple[str, ...], path: Path) -> None:
    """The first of the worst and some random ones: image, outline, foreground; captions of unusable ones are bright."""
    third = SHEET_CELLS // 3
    worst = [cell for cell in cells if not cell.is_random]
    shown = [*worst[: 2 * third], *(cell for cell in cells if cell.is_random)][:SHEET_CELLS]
    pictures = [_picture(cell, classes) for cell in shown]
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % SHEET_COLUMNS)
    lines = [np.concatenate(pictures[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(pictures), SHEET_COLUMNS)]
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(lines), cv2.COLOR_RGB2BGR))


def _picture(cell: GalleryItem, classes: tuple[str, ...]) -> NDArray[np.uint8]:
    image = cv2.resize(cell.image, (PICTURE, PICTURE), interpolation=cv2.INTER_CUBIC)
    mask = cv2.resize(cell.mask.astype(np.uint8), (PICTURE, PICTURE), interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlined = cv2.drawContours(np.array(image), outlines, -1, OUTLINE, 1)
    foreground = np.where(mask[..., None] > 0, image, np.array(NOTHING, np.uint8))
    caption = np.full((CAPTION, 3 * PICTURE, 3), 40 if cell.usable else 120, np.uint8)
    name = classes[cell.label].encode("ascii", "replace").decode()  # OpenCV's letters
    text = f"{name} {cell.figures['share']:.0%}" + ("" if cell.usable else " not used")
    cv2.putText(caption, text, (3, CAPTION - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    picture = np.concatenate([np.concatenate([image, outlined, foreground], axis=1), caption])
    return np.asarray(cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_CONSTANT), np.uint8)
