"""Masks compared with known masks: `python -m benchmarks.segment_quality FOLDER [--limit 100]`.

FOLDER holds images/NAME.jpg (or .png, .webp ...) and masks/NAME.png of the same size, where every pixel that is not
black is foreground; names of the form CLASS/NAME add a table by class. The benchmark measures the intersection over
union (IoU) of every image for the strategies of psys and for these baselines: the whole image; a box of half of each
side in the middle; a disc in the middle; OpenCV's GrabCut without changes (5 iterations on the original image),
started from a rectangle with a margin of 5 % ("plain rectangle") and from the bounding box of the true mask ("plain,
true box"). The lead of `auto` over the plain rectangle has a 95 % bootstrap interval over images (10,000 draws, seed
0). Results: results/<machine>/segment_quality.json, one part per folder.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import results_path, table, write
from psys.data.read import read_encoded
from psys.errors import PsysError, exit_with_message
from psys.segment.cut import cut_with_opencv, rectangle
from psys.segment.decode import decode_upright
from psys.segment.grabcut import Box, SegmentConfig, segment

_DRAWS = 10_000
_DISC = 0.38  # radius in units of the sides
_DEGENERATE = 0.02, 0.95

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Method = Callable[[Image, Mask], Mask]  # the second argument is the true mask, for methods that use the true box


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.segment_quality", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="use this many images, evenly spaced")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=results_path("segment_quality"))
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    pairs = find_pairs(arguments.folder)
    if arguments.limit:
        pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(arguments.limit, len(pairs))).astype(int)]
    rows = []
    for number, (name, image_path, mask_path) in enumerate(pairs, 1):
        rows.append({"name": name, **judge(*read_pair(image_path, mask_path), arguments.methods)})
        if number % 10 == 0:
            print(f"{number}/{len(pairs)}", file=sys.stderr, flush=True)
    lead = bootstrap(rows) if {"auto", "plain rectangle"} <= set(arguments.methods) else None
    results = {"lead_of_auto_over_plain_rectangle": lead, "images": rows}
    write(arguments.out, results, part=arguments.folder.resolve().name)
    print("\n".join(report(rows, arguments.methods)))
    if lead:
        print(f"\nauto - plain rectangle: {lead['mean']:+.3f}, 95 % interval {lead['low']:+.3f} to {lead['high']:+.3f}")


def find_pairs(folder: Path) -> list[tuple[str, Path, Path]]:
    """(name, image, mask) in the order of names. Raises PsysError if there is no image or if a mask is missing."""
    images, masks = folder / "images", folder / "masks"
    for part in (images, masks):
        if not part.is_dir():
            raise PsysError(f"no folder {part}: expected {folder} to hold images/NAME.jpg and masks/NAME.png")
    pairs = []
    for path in sorted(p for p in images.rglob("*") if p.is_file()):
        name = path.relative_to(images).with_suffix("")
        mask = masks / name.with_name(name.name + ".png")
        if not mask.is_file():
            raise PsysError(f"no mask {mask} for {path}: expected one PNG for every image")
        pairs.append((name.as_posix(), path, mask))
    if not pairs:
        raise PsysError(f"no images in {images}")
    return pairs


def read_pair(image_path: Path, mask_path: Path) -> tuple[Image, Mask]:
    """The upright image and its mask. Raises PsysError for an unreadable file, different sizes or an empty mask."""
    try:
        image, colours = (decode_upright(read_encoded(path))[0] for path in (image_path, mask_path))
    except ValueError as error:
        raise PsysError(f"cannot read {image_path} or its mask {mask_path}: {error}") from None
    mask = np.asarray(colours.any(axis=2))
    if image.shape[:2] != mask.shape:
        raise PsysError(
            f"{mask_path} is {mask.shape} (H, W) but {image_path} is {image.shape[:2]}: sizes must be equal"
        )
    if not mask.any():
        raise PsysError(f"{mask_path} is all black: expected some foreground")
    return image, mask


def judge(image: Image, truth: Mask, methods: list[str]) -> dict[str, Any]:
    """IoU, share of foreground and seconds by method."""
    figures = {}
    for name in methods:
        start = time.perf_counter()
        mask = METHODS[name](image, truth)
        seconds = time.perf_counter() - start
        figures[name] = {
            "iou": float((mask & truth).sum() / (mask | truth).sum()),
            "share": float(mask.mean()),
            "seconds": seconds,
        }
    return figures


def box_of(mask: Mask) -> Box:
    """The bounding box of a mask that is not empty."""
    rows, columns = np.nonzero(mask)
    return Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


def _strategy(name: str, image: Image, _: Mask) -> Mask:
    return segment(image, SegmentConfig.model_validate({"strategy": name}))


def _plain_box(image: Image, truth: Mask) -> Mask:
    box = box_of(truth)
    labels = np.zeros(truth.shape, np.uint8)
    labels[box.top : box.bottom, box.left : box.right] = cv2.GC_PR_FGD
    return cut_with_opencv(image, labels, 5) if (labels == cv2.GC_BGD).any() else truth | True


def _centre_box(image: Image, _: Mask) -> Mask:
    return np.asarray(rectangle(image.shape, 0.25), np.bool_)


def _centre_disc(image: Image, _: Mask) -> Mask:
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in image.shape[:2])
    return np.asarray(np.hypot(y[:, None], x) < _DISC)


METHODS: dict[str, Method] = {
    "auto": partial(_strategy, "auto"),
    "seeded": partial(_strategy, "seeded"),
    "rect": partial(_strategy, "rect"),
    "auto, true box": lambda image, truth: segment(image, SegmentConfig(), box_of(truth)),
    "whole image": lambda image, truth: np.ones_like(truth),
    "centre box": _centre_box,
    "centre disc": _centre_disc,
    "plain rectangle": lambda image, _: cut_with_opencv(image, rectangle(image.shape, 0.05), 5),
    "plain, true box": _plain_box,
}


def bootstrap(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean lead of auto over the plain rectangle, and its 95 % bootstrap interval over images."""
    leads = np.array([row["auto"]["iou"] - row["plain rectangle"]["iou"] for row in rows])
    means = leads[np.random.default_rng(0).integers(0, len(leads), (_DRAWS, len(leads)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {"mean": float(leads.mean()), "low": float(low), "high": float(high)}


def report(rows: list[dict[str, Any]], methods: list[str]) -> list[str]:
    """A table by method, and a table by class if the names have classes."""
    lines = [f"{len(rows)} images"]
    cells = []
    for name in methods:
        iou, share, seconds = (np.array([row[name][key] for row in rows]) for key in ("iou", "share", "seconds"))
        degenerate = ((share < _DEGENERATE[0]) | (share > _DEGENERATE[1])).mean()
        cells.append([name, f"{iou.mean():.3f}", f"{np.median(iou):.3f}", f"{(iou < 0.5).mean():.0%}"])
        cells[-1] += [f"{degenerate:.1%}", f"{1e3 * np.median(seconds):.1f}"]
    lines += table(["method", "mean IoU", "median IoU", "IoU < 0.5", "degenerate", "ms an image"], cells)
    classes = sorted({row["name"].rpartition("/")[0] for row in rows} - {""})
    if classes:
        lines.append("")
        by_class: list[list[str]] = []
        for kind in classes:
            of_kind = [row for row in rows if row["name"].rpartition("/")[0] == kind]
            means = (f"{np.mean([row[name]['iou'] for row in of_kind]):.3f}" for name in methods)
            by_class.append([kind, str(len(of_kind)), *means])
        lines += table(["class", "images", *methods], by_class)
    return lines


if __name__ == "__main__":
    with exit_with_message():
        main()
