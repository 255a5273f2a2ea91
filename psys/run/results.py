"""Evaluates a trained run from its directory alone: snapshots evaluated, the best exported, curves drawn, a table."""

import math
from bisect import bisect_right
from collections.abc import Sequence
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
from psys.compute.evaluate import Evaluation
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.ps.events import (
    PushRefused,
    RunEnded,
    RunEvent,
    RunStarted,
    SnapshotEvaluated,
    SnapshotSaved,
    StoppedEarly,
    UpdateApplied,
)
from psys.run.config import RunConfig
from psys.run.confusion import draw_confusion
from psys.run.curves import EpochPoint, draw
from psys.run.defaults import rate_in_words
from psys.run.description import as_metadata, describe_model
from psys.run.directory import RunDirectory
from psys.run.divergence import advice, epochs_at, last_sound_version
from psys.run.evaluator import Evaluator
from psys.run.events import EventLog, read_events, surviving
from psys.run.segments import in_words, segments
from psys.run.snapshots import save_module
from psys.run.worker_times import shares, worker_times

_PARITY_IMAGES = 500
_WORST = 2  # classes that the table names


def evaluate_run(run: RunDirectory, console: Console) -> dict[str, Any]:
    """Evaluate every snapshot on the held-out images, choose the best, test it, export it, draw curves, print a table.

    Leaves best.safetensors, last.safetensors, model.json, model.onnx (with `export`), curves.png, confusion.png,
    right.npz and result.json in the run's directory, adds evaluations to events.jsonl, and removes all snapshots but
    the best and the last. Of a run whose training diverged only the sound snapshots count. Returns the content of
    result.json. Raises PsysError if the run was evaluated before, has no snapshot, or no sound one, or is still going
    on.
    """
    if run.complete:
        raise PsysError(f"{run.path} was evaluated before: see {run.result_file}")
    events = surviving(read_events(run.events))
    with EventLog(run.events) as log:  # no other process trains or evaluates the run meanwhile
        result = _evaluate(run, events, log, console)
    console.print(_table(run, result))
    return result


def _evaluate(run: RunDirectory, events: list[RunEvent], log: EventLog, console: Console) -> dict[str, Any]:
    config = run.config()
    store = PreparedStore.open(config.store, config.image_size)
    if store.content_hash not in [event.store for event in events if isinstance(event, RunStarted)]:
        raise PsysError(f"{config.store} is not the store that {run.path} was trained on: it was prepared again since")
    evaluator = Evaluator(run, store, choose_device(0))
    events = [*events, *_evaluate_snapshots(run, events, evaluator, log, console)]
    sound = last_sound_version(events)  # an evaluation may have shown that the training diverged
    points = {version: point for version, point in _points(run, events).items() if sound is None or version <= sound}
    saved = [version for version in points if run.snapshot_path(version).exists()]
    if not saved and sound is not None:
        raise PsysError(f"training diverged: {run.path} has no sound snapshot; {advice(run)}")
    if not saved:
        raise PsysError(f"{run.path} has no snapshot to evaluate: the run ended before its first one")
    best, last = max(saved, key=lambda version: _merit(version, points[version])), max(saved)
    result = {"mode": config.mode, "model": config.model, **_summary(events)}
    _draw(run, config, list(points.values()), result)
    right: dict[str, NDArray[np.bool_]] = {}
    # The best comes last, for it stays loaded for the export. One snapshot that is both is tested once.
    for role, version in (("last", last), ("best", best)):
        if role == "last" or best != last:
            evaluator.load(version)
            tested = evaluator.test()
        if not math.isfinite(tested.loss):
            raise PsysError(
                f"training diverged: the loss of version {version} on the test images is {tested.loss}; lower "
                "--schedule.learning-rate"
            )
        description = describe_model(run, store, version)
        save_module(evaluator.module, run.path / f"{role}.safetensors", as_metadata(description))
        figures = {"loss": tested.loss, "accuracy": tested.accuracy, "images": tested.images}
        right[role] = tested.right
        result[role] = {"version": version, **points[version]._asdict(), "test": figures}
    result["best"]["test"] |= {"classes": _by_class(tested, store.classes), "confusion": tested.confusion.tolist()}
    title = f"{run.path.name}: test images, best snapshot, {tested.accuracy:.1%} right"
    draw_confusion(tested.confusion, store.classes, run.path / "confusion.png", title)
    run.write_model(description)
    run.write_right(right)
    result["onnx"] = _export(run, store, evaluator.module, description, tested.accuracy) if config.export else None
    result["points"] = [point._asdict() for point in points.values()]
    run.write_result(result)
    run.remove_snapshots(keep={best, last})
    return result


def _evaluate_snapshots(
    run: RunDirectory, events: list[RunEvent], evaluator: Evaluator, log: EventLog, console: Console
) -> list[SnapshotEvaluated]:
    """Evaluate the sound snapshots that were not evaluated before, and add their evaluations to `log`."""
    sound = last_sound_version(events)
    evaluated = {event.version for event in events if isinstance(event, SnapshotEvaluated)}
    missing = [
        event.version
        for event in events
        if isinstance(event, SnapshotSaved)
        and evaluator.has_held_out
        and event.version not in evaluated
        and (sound is None or event.version <= sound)
        and run.snapshot_path(event.version).exists()
    ]
    hidden = not console.is_terminal
    made = []
    for version in track(missing, "evaluating snapshots", console=console, transient=True, disable=hidden):
        made.append(evaluator.evaluate(version))
        log.write(made[-1])
    return made


def _points(run: RunDirectory, events: list[RunEvent]) -> dict[int, EpochPoint]:
    """The points of the curves by version; training figures are means since the snapshot before.

    Snapshots whose files are gone, as an earlier evaluation removed them, have points as well.
    """
    evaluations = {event.version: event for event in events if isinstance(event, SnapshotEvaluated)}
    updates = [event for event in events if isinstance(event, UpdateApplied)]
    points: dict[int, EpochPoint] = {}
    first = 0
    for snapshot in (event for event in events if isinstance(event, SnapshotSaved)):
        if snapshot.version in points:  # saved again after a resume at this version
            continue
        last = bisect_right(updates, snapshot.version, key=lambda update: update.version)
        since, first = updates[first:last], last
        if not since:
            raise PsysError(f"{run.events} has no update before the snapshot of version {snapshot.version}")
        evaluation = evaluations.get(snapshot.version)
        weights = [update.images for update in since]
        loss = float(np.average([update.loss for update in since], weights=weights))
        points[snapshot.version] = EpochPoint(
            snapshot.epochs,
            snapshot.seconds,
            loss if math.isfinite(loss) else None,
            float(np.average([update.accuracy for update in since], weights=weights)),
            evaluation.loss if evaluation else None,
            evaluation.accuracy if evaluation else None,
        )
    return points


def _draw(run: RunDirectory, config: RunConfig, points: Sequence[EpochPoint], result: dict[str, Any]) -> None:
    seams = [(segment["epoch"], in_words(segment["changed"])) for segment in result["segments"]]
    diverged = f", diverged after epoch {result['diverged']['epoch']:.4g}" if result["diverged"] else ""
    draw(points, run.path / "curves.png", f"{run.path.name}: {config.model}, {config.mode}{diverged}", seams)


def _by_class(tested: Evaluation, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Images and accuracy of each class; the accuracy of a class without images is None."""
    counts, right = tested.confusion.sum(axis=1).tolist(), tested.confusion.diagonal().tolist()
    return [
        {"class": name, "images": images, "accuracy": hits / images if images else None}
        for name, images, hits in zip(classes, counts, right, strict=True)
    ]


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
    sound = last_sound_version(events)
    return {
        "workers": _workers(events),
        "updates": len(updates),
        "train_seconds": seconds,
        "stopped_early": next((_why(event) for event in events if isinstance(event, StoppedEarly)), None),
        "diverged": {"version": sound, "epoch": epochs_at(sound, events)} if sound is not None else None,
        "segments": [segment._asdict() for segment in segments(events)],
        "images_per_second": sum(update.images for update in updates) / seconds,
        "time": worker_times(events),
        "staleness_mean": float(np.mean(staleness)),
        "staleness_max": max(staleness),
        # Of a run that was killed nobody knows them.
        "batches": {name: value for name, value in asdict(end).items() if name not in ("time", "event", "seconds")}
        if end
        else {},
    }


def _workers(events: list[RunEvent]) -> int:
    """Workers that pushed gradients, at most since one start of the servers: a resume gives all of them new names."""
    names, most = set[str](), 0
    for event in events:
        if isinstance(event, RunStarted):
            names = set()
        elif isinstance(event, UpdateApplied):
            names.update(event.workers)
        elif isinstance(event, PushRefused):
            names.add(event.lease.worker)
        most = max(most, len(names))
    return most


def _why(stopped: StoppedEarly) -> str:
    return f"no better held-out accuracy than {stopped.best_accuracy:.1%} for {stopped.patience:g} epochs"


def _export(
    run: RunDirectory, store: PreparedStore, module: nn.Module, description: dict[str, Any], accuracy: float
) -> dict[str, Any]:
    # Imported here: the import takes seconds, which programs that evaluate nothing do not need to spend.
    from psys.onnx.export import export
    from psys.onnx.parity import check

    path = run.path / "model.onnx"
    colours = {"mean": store.channel_mean, "std": store.channel_std}
    # The file's own input is pixels, which it normalises itself.
    metadata = {name: text for name, text in as_metadata(description).items() if name != "input"}
    metadata["test_accuracy"] = f"{accuracy:.4f}"
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
        "worst classes": _worst(best["test"]["classes"]),
        "wall-clock of training": f"{result['train_seconds']:.1f} s",
        "speed": f"{result['images_per_second']:.0f} images/s",
        "workers": str(result["workers"]),
        "workers computed / waited / communicated": shares(result["time"]),
        "learning rate": rate_in_words(run.config()),
        "staleness mean / max": f"{result['staleness_mean']:.2f} / {result['staleness_max']} updates",
        "batches applied / duplicated / lost": " / ".join(map(str, counts)),
    }
    if onnx:
        rows["ONNX Runtime against torch"] = f"within {onnx['max_difference']:.0e} on {onnx['images']} images"
    if batches.get("late"):
        rows["gradients refused as late"] = str(batches["late"])
    if result["segments"]:
        rows["settings changed"] = "\n".join(
            f"at epoch {segment['epoch']:.4g}: {', '.join(in_words(segment['changed']))}"
            for segment in result["segments"]
        )
    if result["diverged"]:
        rows["training diverged"] = "after epoch {epoch:.4g} (version {version}): later snapshots are left out".format(
            **result["diverged"]
        )
    if result["stopped_early"]:
        rows["stopped early"] = result["stopped_early"]
    table = Table(title=f"{result['model']}, {result['mode']}: {run.path}", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _worst(classes: Sequence[dict[str, Any]]) -> str:
    """The two classes of lowest accuracy, in words."""
    tested = sorted((each for each in classes if each["images"]), key=lambda each: each["accuracy"])
    return ", ".join(f"{each['class']} {each['accuracy']:.1%}" for each in tested[:_WORST])
