"""Draw the embedded sample from the full CIFAR-10: `python -m psys.data.draw_sample datasets/cifar10`."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

from psys.data.dataset import content_hash, read_dataset
from psys.data.sample import FOLDER, TILE

SEED = 2024
# For each split: images per class, and columns of the contact sheet; a class fills complete rows.
PER_CLASS = {"train": (200, 40), "test": (50, 25)}


def draw(dataset_folder: Path, sample_folder: Path) -> None:
    """Write train.png, test.png and labels.json: `PER_CLASS` images of each class, chosen by `SEED`."""
    dataset = read_dataset(dataset_folder)
    generator = np.random.default_rng(SEED)
    metadata: dict[str, object] = {"origin": f"drawn from {dataset.origin}", "classes": dataset.classes, "seed": SEED}
    for split, (count, columns) in PER_CLASS.items():
        images, labels = np.asarray(dataset.splits[split].images), dataset.splits[split].labels
        chosen = np.concatenate(
            [
                np.sort(generator.choice(np.flatnonzero(labels == label), count, replace=False))
                for label in range(len(dataset.classes))
            ]
        )
        tiles, tile_labels = images[chosen], labels[chosen]
        rows = len(tiles) // columns
        sheet = tiles.reshape(rows, columns, TILE, TILE, 3).swapaxes(1, 2).reshape(rows * TILE, columns * TILE, 3)
        png = sample_folder / f"{split}.png"
        cv2.imwrite(str(png), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
        metadata[split] = {
            "content_hash": content_hash(tiles, tile_labels),
            "labels": tile_labels.tolist(),
            "indices": chosen.tolist(),
        }
    (sample_folder / "labels.json").write_text(json.dumps(metadata) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), FOLDER)
