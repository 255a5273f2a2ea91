"""The picture of every augmentation on images of the sample: `python -m benchmarks.augment_figure`.

Rows are augmentations, columns are training images with usable masks. The text below a mixed image is its label after
mixing. Each row is one batch, with the augmentation of the row applied to every view, so the partners of an image are
the other images of its row. Writes docs/images/augmentations.png.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import ROOT, prepared_sample
from psys.augment.batch import AugmentConfig, augment
from psys.data.store import PreparedStore
from psys.errors import exit_with_message

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STILL: dict[str, Any] = {"flip": False, "shift": 0}
ROWS: dict[str, dict[str, Any]] = {
    "image": STILL,
    "flip, shift": {},
    "rotation": {**STILL, "rotate_degrees": 20},
    "cutout": {**STILL, "cutout_size": 16},
    "black": {**STILL, "foreground": {"black": 1.0}},
    "mean": {**STILL, "foreground": {"mean": 1.0}},
    "swap": {**STILL, "foreground": {"swap": 1.0}},
    "keep": {**STILL, "cutout_size": 16, "foreground": {"keep": 1.0, "keep_erased": 0.1}},
    "mix": {**STILL, "foreground": {"mix": 1.0}},
    "shuffled_mask": {**STILL, "foreground": {"shuffled_mask": 1.0}},
    "box_mask": {**STILL, "foreground": {"box_mask": 1.0}},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.augment_figure", description=__doc__)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "augmentations.png")
    arguments = parser.parse_args()
    prepared_sample(arguments.store)
    store = PreparedStore.open(arguments.store)
    split = store.split("train")
    chosen = choose(store, arguments.columns, arguments.seed)
    images, labels, masks, usable = (torch.from_numpy(np.array(column[chosen])) for column in split)
    seen = images, labels, masks, usable
    size = (len(chosen) * 0.72 + 1.1, len(ROWS) * 0.78 + 0.3)
    figure, axes = plt.subplots(len(ROWS), len(chosen), figsize=size, squeeze=False)
    for line, (name, settings) in zip(axes, ROWS.items(), strict=True):
        config = AugmentConfig.model_validate(settings)
        generator = torch.Generator().manual_seed(arguments.seed)
        views, targets = augment(*seen, config, len(store.classes), store.channel_mean, store.channel_std, generator)
        for axis, picture, label in zip(line, pixels(views, store), targets, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if label.dim():
                axis.set_xlabel(described(label, store.classes), fontsize=5, labelpad=1.5)
            elif name == "image":
                axis.set_title(store.classes[int(label)], fontsize=7, pad=3)
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=4)
    figure.subplots_adjust(
        left=1.05 / size[0], right=0.995, top=1 - 0.25 / size[1], bottom=0.02, wspace=0.05, hspace=0.2
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=100, pil_kwargs={"optimize": True})
    print(f"{arguments.out}: {arguments.out.stat().st_size // 1000} kB")


def choose(store: PreparedStore, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of training images, one class after the other, whose usable masks cover 10 % to 60 % of the image."""
    split, shares = store.split("train"), store.quality("train")[:, 0]
    fits = split.usable & (shares > 0.1) & (shares < 0.6)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(fits))
    chosen = []
    for place in range(count):
        of_class = order[split.labels[order] == place % len(store.classes)]
        chosen.append(of_class[place // len(store.classes)])
    return np.array(chosen)


def pixels(views: Tensor, store: PreparedStore) -> NDArray[np.float32]:
    """Normalised views (V, 3, H, W) as pictures (V, H, W, 3) with values from 0 to 1."""
    spread, centre = (torch.tensor(colour).view(3, 1, 1) for colour in (store.channel_std, store.channel_mean))
    return np.asarray((views * spread + centre).clamp(0, 1).permute(0, 2, 3, 1).numpy())


def described(label: Tensor, classes: tuple[str, ...]) -> str:
    """A mixed label as text: class names and shares, the largest share first."""
    shares = [(float(share), classes[index]) for index, share in enumerate(label) if share > 0.005]
    return " ".join(f"{name[:4]} {share:.0%}" for share, name in sorted(shares, reverse=True))


if __name__ == "__main__":
    with exit_with_message():
        main()
