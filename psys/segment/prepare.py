"""`psys prepare`: prepare a source of images into a store, with segmentation by Ray actors."""

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from rich.console import Console

from psys.config import Config
from psys.data.dataset import Dataset
from psys.data.folders import new_folder
from psys.data.source import open_source
from psys.data.source_name import SAMPLE, source_location, store_name
from psys.data.store import MANIFEST, PREPARED_FROM, PreparedStore
from psys.data.writer import StoreWriter
from psys.errors import PsysError
from psys.segment.actors import Pool, ray_session
from psys.segment.boxes import read_boxes
from psys.segment.gallery import draw_gallery
from psys.segment.grabcut import SegmentConfig
from psys.segment.partial import PartialStore
from psys.segment.plan import Plan, PlannedTask
from psys.segment.quality import QUALITY, GateConfig, is_usable
from psys.segment.report import print_line, progress
from psys.segment.task import ImageTask, Prepared, Recipe

SKIPPED_SHOWN, SKIPPED_IN_MANIFEST = 20, 100
QUARANTINE = "quarantine.jsonl"
DENSE_BYTES = 8 * 2**30
ALGORITHM = "grabcut-3"  # changed whenever the same image would get another mask


def _one_folder(name: str) -> str:
    if name in ("", ".", "..") or "/" in name:
        raise ValueError("expected the name of one folder inside --stores")
    return name


class PrepareConfig(Config):
    """Prepare a source for training: decode, resize and segment its images, and write a store."""

    examples: ClassVar[Sequence[str]] = (
        "%(prog)s --source sample",
        "%(prog)s --source PATH/OF/IMAGES --image-size 64 --gallery",
    )

    source: Annotated[str, Field(min_length=1)] = SAMPLE
    """sample, cifar10 (once fetched), a CIFAR-10 archive or folder, or a folder: class folders, Parquet files, tars."""
    stores: Path = Path("stores")
    """Folder for prepared stores."""
    name: Annotated[str, AfterValidator(_one_folder)] | None = None
    """Name of the store (default: the name of the source)."""
    datasets: Path = Path("datasets")
    """Folder for fetched datasets."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Height and width of the stored images in pixels."""
    layout: Literal["auto", "dense", "encoded"] = "auto"
    """dense: pixels; encoded: JPEGs, decoded by the workers; auto: dense if the store takes at most 8 GiB."""
    stored_side: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Largest shorter side, in pixels, of the images in an encoded store (default: image_size)."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each class held out as test, if a folder has no test/ or val/."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the held-out selection."""
    segment: SegmentConfig = SegmentConfig()
    """How images are segmented."""
    boxes: Path | None = None
    """Boxes of objects: CSV or JSON Lines with file (relative to the source), left, top, right, bottom in pixels."""
    gate: GateConfig = GateConfig()
    """Which masks count as degenerate."""
    actors: Annotated[int, Field(ge=1)] | None = None
    """Number of Ray actors, one core each (default: all cores of this machine or of the cluster)."""
    ray_address: str | None = None
    """HOST:PORT of a running Ray cluster whose nodes have psys and the image files (default: a local Ray)."""
    on_error: Literal["skip", "fail"] = "skip"
    """skip: report, skip and count an unreadable image; fail: end the preparation."""
    gallery: bool = False
    """Write gallery.html and gallery.png into the store: images, masks and foregrounds, the worst first."""
    force: bool = False
    """Replace an existing store."""


def prepare(config: PrepareConfig) -> Path:
    """Prepare a store and return its path; an existing store of the same source and settings is kept.

    Raises PsysError for an unreadable source, a name used by a different store, or a class without readable images.
    """
    console = Console()
    dataset = open_source(config.source, config.datasets, config.test_share, config.seed)
    path = config.stores / (config.name or store_name(config.source))
    recipe = _recipe(dataset, config)
    made_of = _made_of(dataset, config, recipe)
    if path.exists() and not config.force:
        _check_same(path, made_of)
        print_line(console, f"{path} is already prepared")
    else:
        _build(dataset, config, recipe, path, made_of, console)
    if config.gallery:
        page = draw_gallery(PreparedStore.open(path), config.seed)
        print_line(console, f"gallery: {page}")
    return path


def _recipe(dataset: Dataset, config: PrepareConfig) -> Recipe:
    images = sum(len(split.labels) for split in dataset.splits.values())
    small = images * config.image_size**2 * (3 + 1 / 8) <= DENSE_BYTES
    layout = config.layout
    if layout == "auto":
        layout = "dense" if small and not config.stored_side else "encoded"
    stored_side = (layout == "encoded" and config.stored_side) or config.image_size
    return Recipe(stored_side, layout, config.segment)


def _made_of(dataset: Dataset, config: PrepareConfig, recipe: Recipe) -> dict[str, Any]:
    """Everything that determines the content of a store."""
    return {
        "source": {
            "name": dataset.name,
            "origin": dataset.origin,
            **{name: split.fingerprint(dataset.root) for name, split in dataset.splits.items()},
        },
        "settings": {
            "algorithm": ALGORITHM,
            "image_size": config.image_size,
            "layout": recipe.layout,
            "stored_side": recipe.size if recipe.layout == "encoded" else None,
            "segment": config.segment.model_dump(),
            "boxes": hashlib.sha256(config.boxes.read_bytes()).hexdigest() if config.boxes else None,
            "gate": config.gate.model_dump(),
            "on_error": config.on_error,
        },
    }


def _check_same(path: Path, made_of: dict[str, Any]) -> None:
    manifest = PreparedStore.open(path).manifest
    for part, expected in made_of.items():
        found = manifest.get(part)
        changed = [key for key, value in expected.items() if not isinstance(found, dict) or found.get(key) != value]
        if changed:
            raise PsysError(
                f"{path} was prepared with another {part} ({', '.join(changed)} differ): "
                "choose another --name, or replace it with --force"
            )


def _build(
    dataset: Dataset, config: PrepareConfig, recipe: Recipe, path: Path, made_of: dict[str, Any], console: Console
) -> None:
    if path.exists() and not (path / MANIFEST).is_file():
        raise PsysError(f"{path} exists and is not a prepared store: choose another --name")
    start = time.monotonic()
    boxes = read_boxes(config.boxes) if config.boxes else {}
    plan = Plan(dataset, boxes, recipe, f"{ALGORITHM}, OpenCV {version('opencv-python-headless')}")
    if config.boxes:
        print_line(console, f"{plan.boxed} of {plan.images} images have a box")
    print_line(console, f"preparing {plan.images} images of {config.source}: GrabCut by Ray actors ...")
    with PartialStore.opened(path.parent / f".{path.name}.shards") as partial:
        _prepare_missing(plan, partial, config, console)
        with new_folder(path) as folder:
            reports = _assemble(plan, partial, config, folder, made_of)
        partial.remove()
        for state in ("partial", "old"):  # left by a killed process
            for left in path.parent.glob(f".{escape(path.name)}.????????.{state}"):
                shutil.rmtree(left, ignore_errors=True)
    for split, report in reports.items():
        print_line(
            console,
            f"{split}: {report.count} images, {len(report.skipped)} skipped, "
            f"{report.degenerate_share:.1%} degenerate masks (not used as foreground)",
        )
    print_line(console, f"{path} written in {time.monotonic() - start:.0f} s")


def _prepare_missing(plan: Plan, partial: PartialStore, config: PrepareConfig, console: Console) -> None:
    """Prepare every task of the plan that has no result in the partial store."""
    tasks, images = [0, 0], [0, 0]  # reused, done now
    shown = 0

    def record(planned: PlannedTask, prepared: Prepared, reused: bool) -> None:
        nonlocal shown
        tasks[not reused] += 1
        images[not reused] += planned.rows
        counter.count(planned.rows, reused)
        for failure in prepared.failures:
            line = f"{plan.name(planned, failure.row)}: {failure.reason}"
            if config.on_error == "fail":
                raise PsysError(f"cannot prepare image {line} (--on-error skip omits such images)")
            shown += 1
            if shown <= SKIPPED_SHOWN:
                print_line(console, f"skipped {line}")

    def missing() -> Iterator[tuple[PlannedTask, ImageTask]]:
        for planned in plan:
            prepared = partial.load(planned.key, plan.recipe, planned.rows)
            if prepared is not None and all(failure.permanent for failure in prepared.failures):
                record(planned, prepared, reused=True)
            else:
                yield planned, plan.load(planned)

    with progress(plan.images, console) as counter:
        remaining = missing()
        if first := next(remaining, None):
            with ray_session(config.actors, config.ray_address) as actors:
                pool = Pool(min(actors, len(plan)), plan.recipe, lambda line: print_line(console, line))
                for planned, prepared in pool.prepare(itertools.chain([first], remaining)):
                    partial.save(planned.key, prepared)
                    record(planned, prepared, reused=False)
            if pool.deaths:
                print_line(console, f"{pool.deaths} actors died; other actors repeated their tasks")
    print_line(
        console,
        f"{tasks[1]} tasks ({images[1]} images) done, {tasks[0]} tasks ({images[0]} images) were done before",
    )


def _assemble(
    plan: Plan, partial: PartialStore, config: PrepareConfig, folder: Path, made_of: dict[str, Any]
) -> dict[str, "_Report"]:
    """Write the store from the tasks' results, in the order of the data set."""
    dataset = plan.dataset
    square = (config.image_size, config.image_size)
    writer = StoreWriter(folder, tuple(dataset.splits), square, QUALITY, plan.recipe.layout)
    reports = {split: _Report(len(dataset.classes)) for split in dataset.splits}
    for planned in plan:
        prepared = partial.load(planned.key, plan.recipe, planned.rows)
        if prepared is None:
            raise PsysError(f"a result in {partial.folder} was damaged after it was written: run the command again")
        labels = dataset.splits[planned.split].labels[planned.first + prepared.rows]
        usable = is_usable(prepared.quality, config.gate)
        writer.append(planned.split, prepared.images, labels, prepared.masks, prepared.quality, usable)
        skipped = [{"file": plan.name(planned, failure.row), "reason": failure.reason} for failure in prepared.failures]
        reports[planned.split].add(labels, usable, skipped)
    for split, report in reports.items():
        for label, count in enumerate(report.per_class):
            if count == 0:
                raise PsysError(f"class '{dataset.classes[label]}' has no readable image for {split}")
    lines = [json.dumps({"split": split, **entry}) for split, report in reports.items() for entry in report.skipped]
    if lines:
        (folder / QUARANTINE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    writer.close(
        dataset.classes,
        {split: report.summary() for split, report in reports.items()},
        **made_of,
        **{PREPARED_FROM: source_location(config.source)},  # a moved data set still has the same content
        libraries={name: version(name) for name in ("numpy", "opencv-python-headless", "ray")},
    )
    return reports


class _Report:
    """Counts for one split."""

    def __init__(self, classes: int) -> None:
        self.per_class = np.zeros(classes, np.int64)
        self.usable = 0
        self.skipped: list[dict[str, str]] = []

    def add(self, labels: NDArray[np.int64], usable: NDArray[np.bool_], skipped: list[dict[str, str]]) -> None:
        self.per_class += np.bincount(labels, minlength=len(self.per_class))
        self.usable += int(usable.sum())
        self.skipped += skipped

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
            "skipped_count": len(self.skipped),
            "skipped": self.skipped[:SKIPPED_IN_MANIFEST],  # quarantine.jsonl has the complete list
        }
