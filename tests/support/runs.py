"""A tiny prepared store and a trained run on it, made by hand in milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from psys.compute.flat import FlatModel
from psys.data.store import PreparedStore
from psys.data.writer import StoreWriter
from psys.models.mlp import MLP
from psys.ps.events import RunEnded, RunEvent, RunStarted, SnapshotSaved, UpdateApplied
from psys.run.assembly import initial_ledger, initial_model
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.events import EventLog
from psys.run.snapshots import save_snapshot

SIDE = 32  # pixels, as models of class MLP want
FIRST, GOOD, LAST = 2, 4, 6
"""Versions with a snapshot: with initial parameters, always right, and always wrong."""


def write_tiny_store(folder: Path) -> PreparedStore:
    """Two classes, dark and bright, with 10 training and 5 test images each; every mask is empty and not usable."""
    folder.mkdir(parents=True)
    writer = StoreWriter(folder, ["train", "test"], (SIDE, SIDE), ["share"])
    generator = np.random.default_rng(0)
    for split, per_class in (("train", 10), ("test", 5)):
        labels = np.arange(2 * per_class, dtype=np.int64) % 2
        noise = generator.integers(0, 60, (len(labels), SIDE, SIDE, 3), dtype=np.uint8)
        images = noise + (labels[:, None, None, None] * 150).astype(np.uint8)
        masks = np.zeros((len(labels), SIDE, SIDE), np.bool_)
        quality, usable = np.zeros((len(labels), 1), np.float32), np.zeros(len(labels), np.bool_)
        writer.append(split, images, labels, masks, quality, usable)
    writer.close(["dark", "bright"], {"train": {}, "test": {}}, source="made by hand")
    return PreparedStore.open(folder)


def brightness_model(right: bool) -> FlatModel:
    """Tells dark from bright images without an error; always wrong if not `right`."""
    module = MLP(2, 2)
    weights = [parameter for parameter in module.parameters() if parameter.dim() == 2]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        weights[0][0], weights[0][1] = -1 / weights[0].shape[1], 1 / weights[0].shape[1]
        weights[1].copy_(torch.eye(2))
        weights[2].copy_(20 * torch.eye(2) if right else 20 * torch.eye(2).flip(0))
    return FlatModel(module)


def update(version: int, **fields: Any) -> UpdateApplied:
    """One batch of one worker; staleness and images are 1 in odd versions and 3 in even ones."""
    part = 1 if version % 2 else 3
    defaults: dict[str, Any] = {
        "seconds": float(version),
        "epochs": version / 2,
        "learning_rate": 0.1,
        "batches": (version - 1,),
        "attempts": (0,),
        "workers": (f"worker{version % 2}",),
        "staleness": (part,),
        "gradient_norms": (1.0,),
        "compute_seconds": (0.5,),
        "wait_seconds": (0.125,),
        "call_seconds": (0.25,),
        "loss": 10.0 * version + part,
        "accuracy": 0.5,
        "images": part,
    }
    return UpdateApplied(version=version, **{**defaults, **fields})


def start(store: str, event: Any = "start", version: int = 0, batches: int = LAST) -> RunStarted:
    return RunStarted(event=event, store=store, version=version, seconds=0.0, batches=batches, counts={}, attempts={})


def end(**counts: Any) -> RunEnded:
    """The totals of a run of LAST batches, each leased once and applied."""
    totals: dict[str, Any] = {"batches": LAST, "leased": LAST, "applied": LAST}
    zeros = dict.fromkeys(("reissued", "duplicates", "expired", "damaged", "unfinished", "lost"), 0)
    return RunEnded(seconds=float(LAST), **{**totals, **zeros, **counts})


def trained_events(store: PreparedStore) -> list[RunEvent]:
    """The events of a run with two updates before each of its three snapshots."""
    events: list[RunEvent] = [start(store.content_hash)]
    for version in range(1, LAST + 1):
        events.append(update(version))
        if version % 2 == 0:
            events.append(SnapshotSaved(version=version, epochs=version / 2, seconds=float(version)))
    return [*events, end()]


def write_events(run: RunDirectory, events: list[RunEvent]) -> None:
    with EventLog(run.events) as log:
        for event in events:
            log.write(event)


def trained_run(folder: Path, store: PreparedStore, validation_share: float = 0.2) -> RunDirectory:
    """A run that was trained and not evaluated. Its events are still to be written (see trained_events)."""
    config = RunConfig(
        name="r", runs=folder, store=store.path, model="mlp2", epochs=3, batch_size=8, validation_share=validation_share
    )
    assert initial_ledger(config, store).batches >= LAST
    run = RunDirectory.create(config)
    models = {FIRST: initial_model(config, 2), GOOD: brightness_model(True), LAST: brightness_model(False)}
    for version, model in models.items():
        save_snapshot(model.parameters, model.statistics, run.snapshot_path(version))
    return run
