"""The weights with which `auto` chooses among its cuts: `python -m benchmarks.segment_fit FOLDER ... [--out FILE]`.

Each FOLDER is a truth set as in `segment_quality`. All images have the same weight. For each cut of each image, at
the size at which `auto` looks for the object, the program measures the figures of the cut and its intersection over
union (IoU) with the truth, and subtracts from both their mean over the cuts of the image: only differences within an
image count. The weights come from ridge regression (Hoerl, Kennard 1970) of the IoU on the figures, each figure in
units of its standard deviation, with penalty 20. The program also prints, for each folder, the mean IoU of the cut
chosen in cross-validation (5 folds of images, seed 0), of the cut chosen with the weights in use, and of the best
cut. Do not fit on a truth set that is used as a test set. Results: results/<machine>/segment_fit.json.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import results_path, table, write
from benchmarks.segment_quality import find_pairs, read_pair
from psys.errors import exit_with_message
from psys.segment.auto import WEIGHTS, CutFeatures, FeatureExtractor, all_cuts, maps_of
from psys.segment.grabcut import FIND_SHORT_SIDE, ITERATIONS, resized, scaled

FOLDS = 5
PENALTY = 20.0


class Cuts(NamedTuple):
    """The C cuts of one image: figures (C, 9), IoU (C,), and the cross-validation fold of the image."""

    figures: NDArray[np.float64]
    ious: NDArray[np.float64]
    fold: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.segment_fit", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=results_path("segment_fit"))
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    generator = np.random.default_rng(0)
    measured = {folder: measure(folder, generator) for folder in arguments.folders}
    pooled = [cuts for of_folder in measured.values() for cuts in of_folder]
    weights = fit(pooled)
    by_fold = [fit([cuts for cuts in pooled if cuts.fold != fold]) for fold in range(FOLDS)]
    rows = [[str(folder), *scores(of_folder, by_fold)] for folder, of_folder in measured.items()]
    fitted = dict(zip(CutFeatures._fields, weights.round(3).tolist(), strict=True))
    write(arguments.out, {"weights": fitted, "in_use": WEIGHTS._asdict(), "folders": rows})
    print("\n".join(f"{name:14} {weight:+.3f}" for name, weight in fitted.items()))
    print("\n".join(table(["folder", "images", "chosen, cross-validated", "weights in use", "best cut"], rows)))


def measure(folder: Path, generator: np.random.Generator) -> list[Cuts]:
    """The cuts of each image of a folder; images without cuts are left out."""
    pairs = find_pairs(folder)
    folds = generator.permutation(len(pairs)) % FOLDS
    measured = []
    for (name, image_path, mask_path), fold in zip(pairs, folds.tolist(), strict=True):
        image, truth = read_pair(image_path, mask_path)
        image = resized(image, min(FIND_SHORT_SIDE, *image.shape[:2]))
        truth = scaled(truth, image.shape)
        maps = maps_of(image)
        if cuts := all_cuts(image, maps, ITERATIONS["auto"]):
            extractor = FeatureExtractor(image, maps, cuts)
            ious = [float((cut & truth).sum() / (cut | truth).sum()) for cut in cuts]
            measured.append(Cuts(np.array([extractor.features(cut) for cut in cuts]), np.array(ious), fold))
        print(f"{folder.name} {name}", file=sys.stderr, flush=True)
    return measured


def fit(images: list[Cuts]) -> NDArray[np.float64]:
    """The weight of each figure."""
    figures = np.concatenate([cuts.figures - cuts.figures.mean(axis=0) for cuts in images])
    ious = np.concatenate([cuts.ious - cuts.ious.mean() for cuts in images])
    deviation = np.concatenate([cuts.figures for cuts in images]).std(axis=0)
    scaled_figures = figures / deviation
    normal = scaled_figures.T @ scaled_figures + PENALTY * np.eye(len(deviation))
    return np.asarray(np.linalg.solve(normal, scaled_figures.T @ ious) / deviation)


def scores(images: list[Cuts], by_fold: list[NDArray[np.float64]]) -> list[str]:
    """Number of images; mean IoU of cuts chosen in cross-validation, chosen with the weights in use, and best cuts."""

    def chosen(cuts: Cuts, weights: NDArray[np.float64]) -> float:
        return float(cuts.ious[np.argmax(cuts.figures @ weights)])

    validated = np.mean([chosen(cuts, by_fold[cuts.fold]) for cuts in images])
    in_use = np.mean([chosen(cuts, np.array(WEIGHTS)) for cuts in images])
    best = np.mean([cuts.ious.max() for cuts in images])
    return [str(len(images)), *(f"{iou:.3f}" for iou in (validated, in_use, best))]


if __name__ == "__main__":
    with exit_with_message():
        main()
