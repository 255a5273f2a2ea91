"""A gallery of a store's masks, the most doubtful first: the page gallery.html and the overview gallery.png."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from psys.data.store import PreparedStore
from psys.segment.page import GalleryItem, write_page

WORST, RANDOM = 180, 60  # most images shown, the doubtful and the random ones
SHEET_ITEMS, SHEET_COLUMNS = 60, 6
PICTURE, CAPTION = 96, 16  # heights on the sheet, in pixels; pictures on the page have at most PICTURE
OUTLINE, BACKGROUND = (255, 230, 0), (255, 0, 255)


def draw_gallery(store: PreparedStore, seed: int) -> Path:
    """Write gallery.html and gallery.png into the store's folder: the worst training images and random others.

    The worst images are those without a usable mask, then those with the largest `doubt`. Returns the path of the page.
    The number of images is limited, so the files do not grow with the store.
    """
    metrics = dict(zip(store.quality_names, store.quality("train").T, strict=True))
    split = store.split("train")
    doubts = doubt(metrics)
    order = np.lexsort((-doubts, np.asarray(split.usable)))
    worst, others = order[:WORST], order[WORST:]
    chosen = np.random.default_rng(seed).choice(others, min(RANDOM, len(others)), replace=False)
    height, width = store.image_size
    items = [
        GalleryItem(
            row,
            int(split.labels[row]),
            np.asarray(split.images[row]),
            np.unpackbits(split.masks[row], count=height * width).reshape(height, width).astype(np.bool_),
            bool(split.usable[row]),
            {name: float(values[row]) for name, values in metrics.items()},
            float(doubts[row]),
            place >= len(worst),
        )
        for place, row in enumerate([*worst.tolist(), *chosen.tolist()])
    ]
    _draw_sheet(items, store.classes, store.path / "gallery.png")
    write_page(items, store.classes, store.path, len(doubts), int(np.sum(~split.usable)), PICTURE)
    return store.path / "gallery.html"


def doubt(metrics: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """Mean rank of each mask over the quality metrics, (N,), from 0 (best) to 1 (worst); equal values share a rank.

    A mask ranks worse the farther its share is from the median, the larger its border contact, and the smaller its
    compactness and colour separation.
    """
    ranks = []
    for name, values in metrics.items():
        badness = np.abs(values - np.median(values)) if name == "share" else values
        _, place, counts = np.unique(badness, return_inverse=True, return_counts=True)
        below = np.cumsum(counts) - counts
        rank = (below + (counts - 1) / 2)[place] / max(len(values) - 1, 1)
        ranks.append(1 - rank if name in ("compactness", "colour_separation") else rank)
    return np.asarray(np.mean(ranks, axis=0), np.float64)


def _draw_sheet(items: list[GalleryItem], classes: tuple[str, ...], path: Path) -> None:
    """Draw the worst and some random images: image, outline, foreground; unusable masks have brighter captions."""
    third = SHEET_ITEMS // 3
    worst = [item for item in items if not item.is_random]
    shown = [*worst[: 2 * third], *(item for item in items if item.is_random)][:SHEET_ITEMS]
    pictures = [_picture(item, classes) for item in shown]
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % SHEET_COLUMNS)
    lines = [np.concatenate(pictures[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(pictures), SHEET_COLUMNS)]
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(lines), cv2.COLOR_RGB2BGR))


def _picture(item: GalleryItem, classes: tuple[str, ...]) -> NDArray[np.uint8]:
    image = cv2.resize(item.image, (PICTURE, PICTURE), interpolation=cv2.INTER_CUBIC)
    mask = cv2.resize(item.mask.astype(np.uint8), (PICTURE, PICTURE), interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlined = cv2.drawContours(np.array(image), outlines, -1, OUTLINE, 1)
    foreground = np.where(mask[..., None] > 0, image, np.array(BACKGROUND, np.uint8))
    caption = np.full((CAPTION, 3 * PICTURE, 3), 40 if item.usable else 120, np.uint8)
    name = classes[item.label].encode("ascii", "replace").decode()  # OpenCV draws ASCII only
    text = f"{name} {item.metrics['share']:.0%}" + ("" if item.usable else " not used")
    cv2.putText(caption, text, (3, CAPTION - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    picture = np.concatenate([np.concatenate([image, outlined, foreground], axis=1), caption])
    return np.asarray(cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_CONSTANT), np.uint8)
