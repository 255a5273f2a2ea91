"""What a run came to, from its directory alone: snapshots evaluated, the best exported, curves drawn, a table."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from psys.compute.device import choose_device
from psys.compute.evaluate import evaluate
from psys.compute.flat import FlatModel
from psys.data.holdout import holdout
from psys.data.store import PreparedStore, Split
from psys.errors import PsysError
from psys.models.registry import build
from psys.run.curves import EpochPoint, draw
from psys.run.directory import RunDirectory, load_snapshot, save_module
from psys.run.events import EventLog, read_events, surviving

Event = dict[str, Any]

_PARITY_IMAGES = 500


def finish(run: RunDirectory, console: Console) -> dict[str, Any]:
    """Evaluate every snapshot on the held-out images, choose the best by them, test it, export it, draw and tabulate.

    Leaves best.safetensors, last.safetensors, model.onnx, curves.png and result.json in the run's directory and removes
    the other snapshots. Returns the result. Raises PsysError if the run was evaluated before, has no snapshot, or is
    still going on.
    """
    if (run.path / "result.json").exists():
        raise PsysError(f"{run.path} is evaluated already: see {run.path / 'result.json'}")
    events = surviving(read_events(run.events))
    with EventLog(run.events):  # nobody trains, nor evaluates, here at the same time
        result = _results(run, events, console)
    console.print(_table(run, result))
    return result


def _results(run: RunDirectory, events: list[Event], console: Console) -> dict[str, Any]:
    config = run.config()
    store = PreparedStore.open(config.store, config.image_size)
    if store.content_hash not in [event.get("store") for event in events if event["event"] in ("start", "resume")]:
        raise PsysError(f"{config.store} is not the store that {run.path} was trained on: it was prepared anew since")
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
        tested = _evaluate(model, run.snapshot_path(version), store, test, np.arange(len(test.labels)))
        save_module(model.module, run.path / f"{role}.safetensors")
        result[role] = {"version": version, **points[version]._asdict(), "test": tested}
    result["onnx"] = _export(run, store, model.module, result)
    result["points"] = [point._asdict() for point in points.values()]
    run.write_json("result.json", result)
    shutil.rmtree(run.snapshots)
    return result


def _evaluate_snapshots(
    run: RunDirectory,
    events: list[Event],
    model: FlatModel,
    store: PreparedStore,
    console: Console,
) -> dict[int, EpochPoint]:
    """Each snapshot's version with what is known of it; training figures are means since the snapshot before."""
    snapshots = [event for event in events if event["event"] == "snapshot"]
    if not snapshots:
        raise PsysError(f"{run.path} has no snapshot to evaluate: the run ended before its first one")
    config, train = run.config(), store.split("train")
    _, held_out = holdout(train.labels, config.validation_share, config.seed)
    updates = [event for event in events if event["event"] == "update"]
    points: dict[int, EpochPoint] = {}
    seen = 0
    hidden = not console.is_terminal
    for snapshot in track(snapshots, "evaluating snapshots", console=console, transient=True, disable=hidden):
        version = snapshot["version"]
        since, seen = [u for u in updates if seen < u["version"] <= version], version
        weights = [update["images"] for update in since]
        loss, accuracy = (float(np.average([u[key] for u in since], weights=weights)) for key in ("loss", "accuracy"))
        validation: Event = {}
        if len(held_out):
            validation = _evaluate(model, run.snapshot_path(version), store, train, held_out)
        points[version] = EpochPoint(
            snapshot["epochs"],
            snapshot["seconds"],
            loss,
            accuracy,
            validation.get("loss"),
            validation.get("accuracy"),
        )
    return points


def _evaluate(
    model: FlatModel, path: Path, store: PreparedStore, split: Split, rows: NDArray[np.int64]
) -> dict[str, Any]:
    load_snapshot(model, path)
    colours = (store.channel_mean, store.channel_std)
    return evaluate(model.module, split.images, split.labels, rows, *colours, model.parameters.device)._asdict()


def _merit(version: int, point: EpochPoint) -> tuple[float, float]:
    """What the best snapshot has most of: right answers on held-out images, or training where none were held out."""
    if point.validation_accuracy is None or point.validation_loss is None:
        return version, 0.0
    return point.validation_accuracy, -point.validation_loss


def _summary(events: list[Event]) -> dict[str, Any]:
    updates = [event for event in events if event["event"] == "update"]
    staleness = [versions for update in updates for versions in update["staleness"]]
    seconds = updates[-1]["seconds"]
    end: Event = next((event for event in reversed(events) if event["event"] == "end"), {})
    return {
        "workers": len({worker for update in updates for worker in update["workers"]}),
        "updates": len(updates),
        "train_seconds": seconds,
        "images_per_second": sum(update["images"] for update in updates) / seconds,
        "staleness_mean": float(np.mean(staleness)),
        "staleness_max": max(staleness),
        # A run that was killed has no account; psys then claims none.
        "batches": {key: value for key, value in end.items() if key not in ("event", "seconds")},
    }


def _export(run: RunDirectory, store: PreparedStore, module: nn.Module, result: dict[str, Any]) -> dict[str, Any]:
    # Imported here: it takes seconds, and training is under way sooner without.
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
