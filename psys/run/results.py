"""Evaluates a trained run from its directory alone: snapshots evaluated, the best exported, curves drawn, a table."""

import math
import shutil
from bisect import bisect_right
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from psys.compute.device import choose_device
from psys.compute.evaluate import Evaluation, evaluate
from psys.compute.flat import FlatModel
from psys.data.holdout import holdout
from psys.data.store import PreparedStore, Split
from psys.errors import PsysError
from psys.models.registry import build
from psys.ps.events import RunEnded, RunEvent, RunStarted, SnapshotSaved, UpdateApplied
from psys.run.curves import EpochPoint, draw
from psys.run.directory import RunDirectory
from psys.run.events import EventLog, read_events, surviving
from psys.run.snapshots import load_snapshot, save_module

_PARITY_IMAGES = 500


def evaluate_run(run: RunDirectory, console: Console) -> dict[str, Any]:
    """Evaluate every snapshot on the held-out images, choose the best, test it, export it, draw curves, print a table.

    Leaves best.safetensors, last.safetensors, model.onnx, curves.png and result.json in the run's directory and removes
    the other snapshots. Returns the content of result.json. Raises PsysError if the run was evaluated before, has no
    snapshot, diverged, or is still going on.
    """
    if run.complete:
        raise PsysError(f"{run.path} was evaluated before: see {run.result_file}")
    events = surviving(read_events(run.events))
    with EventLog(run.events):  # no other process trains or evaluates the run meanwhile
        result = _evaluate(run, events, console)
    console.print(_table(run, result))
    return result


def _evaluate(run: RunDirectory, events: list[RunEvent], console: Console) -> dict[str, Any]:
    config = run.config()
    store = PreparedStore.open(config.store, config.image_size)
    if store.content_hash not in [event.store for event in events if isinstance(event, RunStarted)]:
        raise PsysError(f"{config.store} is not the store that {run.path} was trained on: it was prepared again since")
    model = FlatModel(build(config.model, len(store.classes)).to(choose_device(0)))
    points = _evaluate_snapshots(run, events, model, store, console)
    draw(list(points.values()), run.path / "curves.png", title=f"{run.path.name}: {config.model}, {config.mode}")
    diverged = next((point for point in points.values() if not math.isfinite(point.train_loss)), None)
    if diverged:
        raise PsysError(
            f"training diverged: the loss is {diverged.train_loss} at epoch {diverged.epoch:.1f} "
            f"(see {run.path / 'curves.png'}); lower --schedule.learning-rate"
        )
    result = {"mode": config.mode, "model": config.model, **_summary(events)}
    best = max(points, key=lambda version: _merit(version, points[version]))
    test = store.split("test")
    # The best comes last, for it stays loaded for the export.
    for role, version in (("last", max(points)), ("best", best)):
        load_snapshot(model, run.snapshot_path(version))
        tested = _evaluate_images(model, store, test, np.arange(len(test.labels)))
        save_module(model.module, run.path / f"{role}.safetensors")
        result[role] = {"version": version, **points[version]._asdict(), "test": tested._asdict()}
    result["onnx"] = _export(run, store, model.module, result)
    result["points"] = [point._asdict() for point in points.values()]
    run.write_result(result)
    shutil.rmtree(run.snapshots)
    return result


def _evaluate_snapshots(
    run: RunDirectory, events: list[RunEvent], model: FlatModel, store: PreparedStore, console: Console
) -> dict[int, EpochPoint]:
    """The point of the curves of each snapshot's version; training figures are means since the snapshot before."""
    snapshots = [event for event in events if isinstance(event, SnapshotSaved)]
    if not snapshots:
        raise PsysError(f"{run.path} has no snapshot to evaluate: the run ended before its first one")
    config, train = run.config(), store.split("train")
    _, held_out = holdout(train.labels, config.validation_share, config.seed)
    updates = [event for event in events if isinstance(event, UpdateApplied)]
    points: dict[int, EpochPoint] = {}
    first = 0
    hidden = not console.is_terminal
    for snapshot in track(snapshots, "evaluating snapshots", console=console, transient=True, disable=hidden):
        last = bisect_right(updates, snapshot.version, key=lambda update: update.version)
        since, first = updates[first:last], last
        if not since:
            raise PsysError(f"{run.events} has no update before the snapshot of version {snapshot.version}")
        weights = [update.images for update in since]
        validation: Evaluation | None = None
        if len(held_out):
            load_snapshot(model, run.snapshot_path(snapshot.version))
            validation = _evaluate_images(model, store, train, held_out)
        points[snapshot.version] = EpochPoint(
            snapshot.epochs,
            snapshot.seconds,
            float(np.average([update.loss for update in since], weights=weights)),
            float(np.average([update.accuracy for update in since], weights=weights)),
            validation.loss if validation else None,
            validation.accuracy if validation else None,
        )
    return points


def _evaluate_images(model: FlatModel, store: PreparedStore, split: Split, rows: NDArray[np.int64]) -> Evaluation:
    colours = (store.channel_mean, store.channel_std)
    return evaluate(model.module, split.images, split.labels, rows, *colours, model.parameters.device)


def _merit(version: int, point: EpochPoint) -> tuple[float, float]:
    """What the best snapshot has most of: accuracy on held-out images, or training where no images are held out."""
    if point.validation_accuracy is None or point.validation_loss is None:
        return version, 0.0
    return point.validation_accuracy, -point.validation_loss


def _summary(events: list[RunEvent]) -> dict[str, Any]:
    updates = [event for event in events if isinstance(event, UpdateApplied)]
    staleness = [versions for update in updates for versions in update.staleness]
    seconds = updates[-1].seconds
    end = next((event for event in reversed(events) if isinstance(event, RunEnded)), None)
    return {
        "workers": len({worker for update in updates for worker in update.workers}),
        "updates": len(updates),
        "train_seconds": seconds,
        "images_per_second": sum(update.images for update in updates) / seconds,
        "staleness_mean": float(np.mean(staleness)),
        "staleness_max": max(staleness),
        # Of a run that was killed nobody knows them.
        "batches": {name: value for name, value in asdict(end).items() if name not in ("time", "event", "seconds")}
        if end
        else {},
    }


def _export(run: RunDirectory, store: PreparedStore, module: nn.Module, result: dict[str, Any]) -> dict[str, Any]:
    # Imported here: the import takes seconds, which programs that evaluate nothing do not need to spend.
    from psys.onnx.export import export
    from psys.onnx.parity import check

    path = run.path / "model.onnx"
    accuracy = result["best"]["test"]["accuracy"]
    colours = {"mean": store.channel_mean, "std": store.channel_std}
    metadata = {"model": result["model"], "run": run.path.name, "test_accuracy": f"{accuracy:.4f}"}
    export(module, path, image_size=store.image_size, classes=store.classes, metadata=metadata, **colours)
    images = store.split("test").images
    spread = np.linspace(0, len(images) - 1, min(len(images), _PARITY_IMAGES)).astype(np.int64)
    return check(path, module, torch.from_numpy(images[spread]), **colours)._asdict()


def _table(run: RunDirectory, result: dict[str, Any]) -> Table:
    best, last, batches, onnx = result["best"], result["last"], result["batches"], result["onnx"]
    counts = [batches.get(key, "?") for key in ("applied", "duplicates", "lost")]
    rows = {
        "test accuracy, best snapshot": f"{best['test']['accuracy']:.1%} (epoch {best['epoch']:.1f})",
        "test accuracy, last snapshot": f"{last['test']['accuracy']:.1%}",
        "test images": str(best["test"]["images"]),
        "wall-clock of training": f"{result['train_seconds']:.1f} s",
        "speed": f"{result['images_per_second']:.0f} images/s",
        "workers": str(result["workers"]),
        "staleness mean / max": f"{result['staleness_mean']:.2f} / {result['staleness_max']} updates",
        "batches applied / duplicated / lost": " / ".join(map(str, counts)),
        "ONNX Runtime against torch": f"within {onnx['max_difference']:.0e} on {onnx['images']} images",
    }
    table = Table(title=f"{result['model']}, {result['mode']}: {run.path}", show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
