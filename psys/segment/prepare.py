"""`psys prepare`: a source of images -> a prepared store, segmented by Ray actors."""

import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from psys.config import Config
from psys.data.dataset import Dataset
from psys.data.folders import new_folder
from psys.data.source import open_source
from psys.data.store import MANIFEST, Layout, PreparedStore
from psys.data.writer import StoreWriter
from psys.errors import PsysError
from psys.segment.actors import prepare_shards, ray_session
from psys.segment.gallery import draw_gallery
from psys.segment.quality import QUALITY, GateConfig
from psys.segment.shard import Prepared, Shard

SHARD_IMAGES = 50
SECONDS_BETWEEN_LINES = 5.0
DENSE_BYTES = 8 * 2**30
ALGORITHM = "grabcut-1"  # raised when the same image would get another mask


class PrepareConfig(Config):
    """Prepare a source for training: decode, resize, cut out the foreground, and write the store."""

    source: Annotated[str, Field(min_length=1)] = "sample"
    """sample, cifar10 (once fetched), a CIFAR-10 archive or folder, or a folder: class folders, Parquet files, tars."""
    stores: Path = Path("stores")
    """Folder of the prepared stores."""
    name: str | None = None
    """Name of the store (default: that of the source)."""
    datasets: Path = Path("datasets")
    """Folder of the fetched datasets."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Height and width of the stored images in pixels."""
    layout: Literal["auto", "dense", "encoded"] = "auto"
    """dense: pixels; encoded: JPEGs, decoded by the workers; auto: dense as long as that takes 8 GiB at most."""
    stored_side: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Short side of images in an encoded store in pixels, larger ones are reduced to it (default: image_size)."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each class held out as test, where a folder has no test/ or val/."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the held-out choice."""
    gate: GateConfig = GateConfig()
    """Which masks count as degenerate."""
    actors: Annotated[int, Field(ge=1)] | None = None
    """Ray actors, one core each (default: the cores of this machine, or of the cluster)."""
    ray_address: str | None = None
    """HOST:PORT of a running Ray cluster (default: a local Ray); its nodes need psys and the image files."""
    on_error: Literal["skip", "fail"] = "skip"
    """An unreadable image is named, skipped and counted, or ends the preparation."""
    gallery: bool = False
    """Make gallery.html and gallery.png in the store: images, masks and foregrounds, the worst first."""
    force: bool = False
    """Prepare even if the store exists, and replace it."""


def prepare(config: PrepareConfig) -> Path:
    """Path of the prepared store; an equal one (same source content, same settings) that exists already is kept.

    Raises PsysError for a source that cannot be read, a name taken by another store, or a class left without images.
    """
    console = Console()
    dataset = open_source(config.source, config.datasets, config.test_share, config.seed)
    path = config.stores / (config.name or dataset.name)
    made_of = _made_of(dataset, config)
    if path.exists() and not config.force:
        _check_same(path, made_of)
        _say(console, f"{path} is prepared already")
    else:
        _build(dataset, config, path, made_of, console)
    if config.gallery:
        picture = draw_gallery(PreparedStore.open(path), config.seed)
        _say(console, f"gallery: {picture}")
    return path


def _layout(dataset: Dataset, config: PrepareConfig) -> Layout:
    if config.layout != "auto":
        return config.layout
    images = sum(len(split.labels) for split in dataset.splits.values())
    return "dense" if images * config.image_size**2 * (3 + 1 / 8) <= DENSE_BYTES else "encoded"


def _made_of(dataset: Dataset, config: PrepareConfig) -> dict[str, Any]:
    """All that decides the content of a store."""
    return {
        "source": {
            "name": dataset.name,
            "origin": dataset.origin,
            **{name: split.fingerprint(dataset.root) for name, split in dataset.splits.items()},
        },
        "settings": {
            "algorithm": ALGORITHM,
            "image_size": config.image_size,
            "layout": (layout := _layout(dataset, config)),
            "stored_side": (config.stored_side or config.image_size) if layout == "encoded" else None,
            "gate": config.gate.model_dump(),
            "on_error": config.on_error,
        },
    }


def _check_same(path: Path, made_of: dict[str, Any]) -> None:
    manifest = PreparedStore.open(path).manifest
    for part, wanted in made_of.items():
        made = manifest.get(part)
        changed = [key for key, value in wanted.items() if not isinstance(made, dict) or made.get(key) != value]
        if changed:
            raise PsysError(
                f"{path} was prepared from another {part} ({', '.join(changed)} differ): "
                "choose another --name, or replace it with --force"
            )


def _build(dataset: Dataset, config: PrepareConfig, path: Path, made_of: dict[str, Any], console: Console) -> None:
    if path.exists() and not (path / MANIFEST).is_file():
        raise PsysError(f"{path} exists and is not a prepared store: choose another --name")
    start = time.monotonic()
    total = sum(len(split.labels) for split in dataset.splits.values())
    _say(console, f"preparing {total} images of {config.source}: GrabCut by Ray actors ...")
    shards = list(_shards(dataset))
    with new_folder(path) as folder, ray_session(config.actors, config.ray_address) as actors:
        layout = _layout(dataset, config)
        size = config.image_size if layout == "dense" else config.stored_side or config.image_size
        parts = prepare_shards(shards, min(actors, len(shards)), size, config.gate, layout)
        writer = StoreWriter(folder, tuple(dataset.splits), (config.image_size, config.image_size), QUALITY, layout)
        reports = {split: _Report(len(dataset.classes)) for split in dataset.splits}
        for part in _progress(parts, total, console):
            for file, reason in part.unreadable:
                if config.on_error == "fail":
                    raise PsysError(f"cannot read image {file}: {reason} (--on-error skip leaves such images out)")
                _say(console, f"skipped {file}: {reason}")
            writer.append(part.split, part.images, part.labels, part.masks, part.quality, part.usable)
            reports[part.split].add(part)
        for split, report in reports.items():
            for label, count in enumerate(report.per_class):
                if count == 0:
                    raise PsysError(f"class '{dataset.classes[label]}' has no readable image left for {split}")
        writer.close(
            dataset.classes,
            {split: report.summary() for split, report in reports.items()},
            **made_of,
            libraries={name: version(name) for name in ("numpy", "opencv-python-headless", "ray")},
        )
    _print_summary(path, reports, time.monotonic() - start, console)


class _Report:
    """Counts of one split while it is prepared."""

    def __init__(self, classes: int) -> None:
        self.per_class = np.zeros(classes, np.int64)
        self.usable = 0
        self.skipped: list[dict[str, str]] = []

    def add(self, part: Prepared) -> None:
        self.per_class += np.bincount(part.labels, minlength=len(self.per_class))
        self.usable += int(part.usable.sum())
        self.skipped += [{"file": file, "reason": reason} for file, reason in part.unreadable]

    @property
    def count(self) -> int:
        return int(self.per_class.sum())

    @property
    def degenerate_share(self) -> float:
        return 1 - self.usable / self.count

    def summary(self) -> dict[str, Any]:
        return {
            "per_class": self.per_class.tolist(),
            "degenerate_share": self.degenerate_share,
            "skipped": self.skipped,
        }


def _shards(dataset: Dataset) -> Iterator[Shard]:
    for name, split in dataset.splits.items():
        for first in range(0, len(split.labels), SHARD_IMAGES):
            rows = slice(first, first + SHARD_IMAGES)
            yield Shard(name, split.images[rows], split.labels[rows])


def _progress(parts: Iterable[Prepared], total: int, console: Console) -> Iterator[Prepared]:
    if console.is_terminal:
        rate = TextColumn("{task.fields[rate]:.0f} images/s")
        with Progress(
            TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), console=console
        ) as bar:
            task = bar.add_task("", total=total, rate=0.0)
            for part, done, rate_now in _measured(parts):
                bar.update(task, completed=done, rate=rate_now)
                yield part
        return
    told = time.monotonic()
    for part, done, rate_now in _measured(parts):
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            left = (total - done) / rate_now
            _say(console, f"{done}/{total} images, {rate_now:.0f} images/s, {left:.0f} s left")
        yield part


def _measured(parts: Iterable[Prepared]) -> Iterator[tuple[Prepared, int, float]]:
    done, start = 0, time.monotonic()
    for part in parts:
        done += len(part.labels) + len(part.unreadable)
        yield part, done, done / (time.monotonic() - start)


def _print_summary(path: Path, reports: dict[str, _Report], seconds: float, console: Console) -> None:
    for split, report in reports.items():
        _say(
            console,
            f"{split}: {report.count} images, {len(report.skipped)} skipped, "
            f"{report.degenerate_share:.1%} degenerate masks (not used as foreground)",
        )
    _say(console, f"{path} written in {seconds:.0f} s")


def _say(console: Console, line: str) -> None:
    # The name of a file need not be UTF-8.
    printable = line.encode(errors="backslashreplace").decode()
    console.print(printable, highlight=False, soft_wrap=True, markup=False)
