"""Open the source that `--source` names: the sample, the fetched CIFAR-10, or a path whose format is detected."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from psys.data.cifar import holds_cifar, read_cifar
from psys.data.dataset import FILE, Dataset, DatasetSplit, read_dataset
from psys.data.holdout import holdout
from psys.data.image import EXTENSIONS
from psys.data.packed import PackedSplit, by_split, classified, find_packed
from psys.data.reference import Files
from psys.data.sample import read_sample
from psys.data.source_name import CIFAR10, SAMPLE, store_name
from psys.data.tars import holds_samples, read_tars
from psys.errors import PsysError

_ENDINGS = tuple(f".{extension}" for extension in EXTENSIONS)


def open_source(source: str, datasets: Path, test_share: float, seed: int) -> Dataset:
    """Open the dataset that `source` names.

    source: "sample"; "cifar10", fetched into `datasets`; or a path. A path may be a fetched dataset; CIFAR-10 as
    published (archive or folder, python or binary format); a folder of class folders; a folder with train/ and test/
    (or val/) of class folders; a Parquet file (Hugging Face) or tar (WebDataset); or a folder of such files, whose
    names give the splits. Without a labelled test or validation set the share `test_share` of each class is held out,
    selected with `seed`. Raises PsysError naming the file or folder and what was expected.
    """
    if source == SAMPLE:
        return read_sample()
    # Absolute: actors have other working directories.
    path = (datasets / source if source == CIFAR10 else Path(source)).absolute()
    if not path.exists():
        hint = "fetch it with `psys data fetch cifar10`" if source == CIFAR10 else "expected sample, cifar10 or a path"
        raise PsysError(f"source {source}: {path} does not exist ({hint})")
    if (path / FILE).is_file():
        return read_dataset(path)
    if files := find_packed(path, ".parquet"):
        # Imported here: pyarrow is an optional dependency.
        from psys.data.parquet import read_parquet

        return _read_packed(path, files, read_parquet, "Parquet", test_share, seed)
    if path.is_file() and holds_samples(path):
        return _read_packed(path, [path], read_tars, "WebDataset", test_share, seed)
    if holds_cifar(path):
        return read_cifar(path)
    if path.is_file():
        raise PsysError(f"source {path} is neither a CIFAR-10 archive (.tar.gz) nor a Parquet file, tar or folder")
    if files := find_packed(path, ".tar"):
        return _read_packed(path, files, read_tars, "WebDataset", test_share, seed)
    if files := [*find_packed(path, ".tar.gz"), *find_packed(path, ".tgz")]:
        raise PsysError(f"{files[0]} is compressed, but tar members are read by offset: decompress it with gunzip")
    return _read_folder(path, test_share, seed)


def _read_packed(
    path: Path, files: list[Path], read: Callable[[list[Path]], PackedSplit], form: str, test_share: float, seed: int
) -> Dataset:
    splits = by_split(files, path)
    if "train" not in splits:
        raise PsysError(f"{path} has files for {' and '.join(splits)} but none for train")
    classes, found = classified({split: read(of_split) for split, of_split in splits.items()}, path)
    train, test = found["train"], found.get("test") or found.get("validation")
    name = store_name(os.path.realpath(path))
    root = path if path.is_dir() else path.parent
    return _complete(name, f"{form} {name}", root, classes, train, test, test_share, seed)


def _read_folder(path: Path, test_share: float, seed: int) -> Dataset:
    train = path / "train" if (path / "train").is_dir() else path
    test = next((path / name for name in ("test", "val") if train != path and (path / name).is_dir()), None)
    classes, training = _class_folders(train)
    testing = None
    if test is not None:
        test_classes, testing = _class_folders(test)
        if classes != test_classes:
            odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
            raise PsysError(f"{train} and {test} must have the same class folders; only one has: {odd}")
    name = store_name(os.path.realpath(path))
    return _complete(name, f"folder {name}", path, classes, training, testing, test_share, seed)


def _complete(
    name: str,
    origin: str,
    root: Path,
    classes: tuple[str, ...],
    train: DatasetSplit,
    test: DatasetSplit | None,
    test_share: float,
    seed: int,
) -> Dataset:
    """Hold out a test set if there is none, and check that every split has images of every class."""
    if len(classes) < 2:
        raise PsysError(f"{root} has {len(classes)} class, expected at least two")
    if test is None:
        train, test = _hold_out(train, classes, test_share, seed, root)
    for split, labels in (("train", train.labels), ("test", test.labels)):
        if missing := np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist():
            raise PsysError(f"{root}: class '{classes[missing[0]]}' has no image for {split}")
    return Dataset(name, origin, root, classes, train, test)


def _class_folders(path: Path) -> tuple[tuple[str, ...], DatasetSplit]:
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if len(folders) < 2:
        raise PsysError(f"{path} has {len(folders)} class folders, expected at least two: {path}/<class>/<image>")
    names: list[str] = []
    counts: list[int] = []
    for folder in folders:
        found = sorted(_images(folder, path))
        if not found:
            raise PsysError(f"class folder {folder} has no image ({' '.join(_ENDINGS)})")
        names += found
        counts.append(len(found))
    labels = np.repeat(np.arange(len(folders)), counts)
    return tuple(folder.name for folder in folders), DatasetSplit(Files(path, names), labels)


def _images(folder: Path, root: Path) -> Iterator[str]:
    """Paths, relative to `root`, of the image files in a folder and its subfolders."""
    for below, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(below, root)
        for name in files:
            is_image = name.lower().endswith(_ENDINGS) and not name.startswith(".")
            if is_image and os.path.isfile(os.path.join(below, name)):
                yield os.path.join(prefix, name)


def _hold_out(
    labelled: DatasetSplit, classes: tuple[str, ...], share: float, seed: int, path: Path
) -> tuple[DatasetSplit, DatasetSplit]:
    train, test = holdout(labelled.labels, share, seed)
    totals, held = (np.bincount(rows, minlength=len(classes)) for rows in (labelled.labels, labelled.labels[test]))
    for name, total, tested in zip(classes, totals, held, strict=True):
        if tested in (0, total):
            raise PsysError(
                f"{path}: class '{name}' has {total} images: too few to hold out {share:.0%} for testing; "
                "add images, change --test-share, or provide a test set"
            )
    return labelled.take(train), labelled.take(test)
