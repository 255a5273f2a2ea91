"""What `--source` may name: the sample, the fetched CIFAR-10, or a path recognised by what it holds."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psys.data.cifar import holds_cifar, read_cifar
from psys.data.dataset import FILE, Dataset, DatasetSplit, read_dataset
from psys.data.holdout import holdout
from psys.data.sample import read_sample
from psys.errors import PsysError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def open_source(source: str, datasets: Path, test_share: float, seed: int) -> Dataset:
    """The dataset that `source` names.

    "sample"; "cifar10" as fetched into `datasets`; or the path of a fetched dataset, of CIFAR-10 as published (archive
    or folder, python or binary), of a folder of class folders, or of train/ and test/ (or val/) with class folders.
    Without a test folder `test_share` of each class is held out, chosen by `seed`.
    Raises PsysError naming the file or folder and what was expected of it.
    """
    if source == "sample":
        return read_sample()
    path = datasets / source if source == "cifar10" else Path(source)
    if not path.exists():
        hint = (
            "fetch it with `psys data fetch cifar10`" if source == "cifar10" else "expected sample, cifar10 or a path"
        )
        raise PsysError(f"source {source}: there is no {path} ({hint})")
    if (path / FILE).is_file():
        return read_dataset(path)
    if holds_cifar(path):
        return read_cifar(path)
    if path.is_file():
        raise PsysError(f"source {path} is neither a CIFAR-10 archive (.tar.gz) nor a folder")
    return _read_folder(path, test_share, seed)


def _read_folder(path: Path, test_share: float, seed: int) -> Dataset:
    train = path / "train" if (path / "train").is_dir() else path
    test = next((path / name for name in ("test", "val") if train != path and (path / name).is_dir()), None)
    classes, training = _class_folders(train)
    if test is None:
        training, testing = _hold_out(training, classes, test_share, seed, train)
    else:
        test_classes, testing = _class_folders(test)
        if classes != test_classes:
            odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
            raise PsysError(f"{train} and {test} must have the same class folders; only one of them has: {odd}")
    name = path.resolve().name
    return Dataset(name, f"folder {name}", path, classes, training, testing)


def _class_folders(path: Path) -> tuple[tuple[str, ...], DatasetSplit]:
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if len(folders) < 2:
        raise PsysError(f"{path} has {len(folders)} class folders, expected at least two: {path}/<class>/<image>")
    images: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = [file for file in sorted(folder.rglob("*")) if _is_image(file, folder)]
        if not files:
            raise PsysError(f"class folder {folder} has no image ({' '.join(EXTENSIONS)})")
        images += files
        labels += [label] * len(files)
    return tuple(folder.name for folder in folders), DatasetSplit(tuple(images), np.array(labels, np.int64))


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in EXTENSIONS and not hidden and file.is_file()


def _hold_out(
    everything: DatasetSplit, classes: tuple[str, ...], share: float, seed: int, path: Path
) -> tuple[DatasetSplit, DatasetSplit]:
    train, test = holdout(everything.labels, share, seed)
    for label, name in enumerate(classes):
        held, total = ((rows == label).sum() for rows in (everything.labels[test], everything.labels))
        if held in (0, total):
            raise PsysError(
                f"class folder {path / name} has {total} images: too few to hold out {share:.0%} of them as test; "
                "add images, change --test-share, or give a test folder"
            )
    return _subset(everything, train), _subset(everything, test)


def _subset(split: DatasetSplit, rows: NDArray[np.int64]) -> DatasetSplit:
    return DatasetSplit(tuple(split.images[row] for row in rows), split.labels[rows])
