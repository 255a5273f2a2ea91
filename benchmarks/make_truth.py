"""Composite images with known masks: `python -m benchmarks.make_truth STAMPS TEMPLATES [--out benchmarks/truth]`.

The program pastes photographs with a hand-made transparent background (the stamps of Tux Paint that
truth/foregrounds.txt lists) on photographs of places (the templates of Tux Paint). A stamp is flipped at random,
scaled to between half and all of the image, and placed near the middle; one in five may cross the edge. Its colours
are moved part of the way towards the light of the place. `photographs` are JPEGs of 320 x 240 pixels, `cifar` are
PNGs of 32 x 32 pixels reduced from 128 x 128. STAMPS and TEMPLATES are the folders usr/share/tuxpaint/stamps and
usr/share/tuxpaint/templates of Debian's packages tuxpaint-stamps-default and tuxpaint-data. The same input gives the
same files.
"""

import argparse
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import ROOT
from psys.errors import PsysError, exit_with_message

TRUTH = ROOT / "benchmarks" / "truth"
SEED = 5
LEAST_SIDE = 90  # of a stamp for a photograph, in pixels
SHARES = 0.04, 0.7  # of foreground; other composites are left out

Scene = tuple[NDArray[np.uint8], NDArray[np.float64]]  # BGR (H, W, 3) and the foreground's alpha (H, W), 0..1


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.make_truth", description=__doc__)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("templates", type=Path)
    parser.add_argument("--photographs", type=int, default=50)
    parser.add_argument("--cifar", type=int, default=100)
    parser.add_argument("--out", type=Path, default=TRUTH)
    arguments = parser.parse_args()
    names = (TRUTH / "foregrounds.txt").read_text(encoding="utf-8").split()
    stamps = {name: _read(arguments.stamps / name, cv2.IMREAD_UNCHANGED) for name in names}
    templates = [_read(path, cv2.IMREAD_COLOR) for path in sorted(arguments.templates.glob("*.jpg"))]
    if not templates:
        raise PsysError(f"no *.jpg in {arguments.templates}: expected the photographs of tuxpaint-data")
    large = {name: stamp for name, stamp in stamps.items() if max(stamp.shape[:2]) >= LEAST_SIDE}
    scenes = _scenes(large, templates, np.random.default_rng(SEED), (240, 320))
    for name, (image, alpha) in zip(_names("photographs", arguments), scenes, strict=False):
        _write(name.with_suffix(".jpg"), image, alpha >= 0.5)
    scenes = _scenes(stamps, templates, np.random.default_rng(SEED), (128, 128))
    for name, scene in zip(_names("cifar", arguments), scenes, strict=False):
        small, cover = (cv2.resize(layer, (32, 32), interpolation=cv2.INTER_AREA) for layer in scene)
        _write(name.with_suffix(".png"), np.asarray(small, np.uint8), np.asarray(cover >= 0.5))


def _names(kind: str, arguments: argparse.Namespace) -> Iterator[Path]:
    for index in range(getattr(arguments, kind)):
        yield arguments.out / kind / "images" / f"{index:03}"


def _write(path: Path, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    masks = path.parents[1] / "masks"
    for folder in (path.parent, masks):
        folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90] if path.suffix == ".jpg" else [])
    cv2.imwrite(str(masks / f"{path.stem}.png"), mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])


def _read(path: Path, how: int) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), how)
    if image is None:
        raise PsysError(f"cannot read {path}: expected a file of tuxpaint-stamps-default or tuxpaint-data")
    return np.asarray(image, np.uint8)


def _scenes(
    stamps: dict[str, NDArray[np.uint8]],
    templates: list[NDArray[np.uint8]],
    generator: np.random.Generator,
    size: tuple[int, int],
) -> Iterator[Scene]:
    names: list[str] = []
    for index in count():
        names = names or list(generator.permutation(sorted(stamps)))
        height, width = size if generator.random() < 0.65 else size[::-1]
        place = _crop(templates[index % len(templates)], height, width, generator)
        scene = _paste(stamps[names.pop()], place, generator)
        if SHARES[0] < (scene[1] >= 0.5).mean() < SHARES[1]:
            yield scene


def _crop(template: NDArray[np.uint8], height: int, width: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    scale = min(template.shape[0] / height, template.shape[1] / width) * generator.uniform(0.5, 1)
    rows, columns = int(height * scale), int(width * scale)
    top, left = (int(generator.integers(0, n - m + 1)) for n, m in zip(template.shape, (rows, columns), strict=False))
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    place = cv2.resize(template[top : top + rows, left : left + columns], (width, height), interpolation=how)
    if generator.random() < 0.3:
        place = cv2.GaussianBlur(place, (0, 0), generator.uniform(0.5, 0.02 * width))
    return np.asarray(place, np.uint8)


def _paste(stamp: NDArray[np.uint8], place: NDArray[np.uint8], generator: np.random.Generator) -> Scene:
    height, width = place.shape[:2]
    rows, columns = np.nonzero(stamp[..., 3] > 127)
    stamp = stamp[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    stamp = stamp[:, :: generator.choice((1, -1))]
    scale = generator.uniform(0.5, 0.98) * min(height / stamp.shape[0], width / stamp.shape[1])
    size = [max(2, round(side * scale)) for side in stamp.shape[1::-1]]
    stamp = np.asarray(cv2.resize(stamp, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))
    middle = (0.5 + generator.normal(0, 0.08, 2)) * (width, height)
    if generator.random() > 0.2:
        middle = middle.clip(np.divide(size, 2) + 1, np.subtract((width, height), np.divide(size, 2)) - 1)
    moved = np.array([[1, 0, 0], [0, 1, 0]], np.float64)
    moved[:, 2] = np.rint(middle - np.divide(size, 2))
    layers = cv2.warpAffine(stamp, moved, (width, height), flags=cv2.INTER_NEAREST).astype(np.float64)
    colours, alpha, background = layers[..., :3], layers[..., 3] / 255, place.astype(np.float64)
    if (alpha > 0.5).any():
        towards = generator.uniform(0, 0.6)
        inside = colours[alpha > 0.5]
        gain = np.clip(background.std(axis=(0, 1)).mean() / (inside.std(axis=0).mean() + 1e-6), 0.6, 1.4) ** towards
        light = 0.6 * towards * (background.mean(axis=(0, 1)) - inside.mean(axis=0))
        colours = (colours - inside.mean(axis=0)) * gain + inside.mean(axis=0) + light
    mixed = colours * alpha[..., None] + background * (1 - alpha[..., None]) + generator.normal(0, 1.5, place.shape)
    return mixed.clip(0, 255).astype(np.uint8), alpha


if __name__ == "__main__":
    with exit_with_message():
        main()
