"""Evaluates the snapshots of a run: on the held-out images to choose the best, on the test images to report it."""

import numpy as np
import torch

from psys.compute.evaluate import Evaluation, evaluate
from psys.compute.flat import FlatModel
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.ps.events import SnapshotEvaluated
from psys.run.directory import RunDirectory
from psys.run.network import build_network, format_of
from psys.run.snapshots import load_snapshot


class Evaluator:
    """The run's model on `device`, into which one snapshot after the other is loaded."""

    def __init__(self, run: RunDirectory, store: PreparedStore, device: torch.device) -> None:
        config = run.config()
        self._run, self._store = run, store
        self._model = FlatModel(build_network(config, len(store.classes), format_of(store)).to(device))
        self.module = self._model.module
        _, self._held_out = holdout(store.split("train").labels, config.validation_share, config.seed)

    @property
    def has_held_out(self) -> bool:
        """Whether the run holds out images."""
        return len(self._held_out) > 0

    def load(self, version: int) -> None:
        """Load a snapshot into the model. Raises PsysError if its file is missing, damaged, or of another model."""
        load_snapshot(self._model, self._run.snapshot_path(version))

    def evaluate(self, version: int) -> SnapshotEvaluated:
        """Load a snapshot and evaluate it on the held-out images, of which there must be one. Raises as `load`."""
        self.load(version)
        split = self._store.split("train")
        found = evaluate(self.module, split.images, split.labels, self._held_out, *self._colours, self._device)
        return SnapshotEvaluated(version=version, loss=found.loss, accuracy=found.accuracy, images=found.images)

    def test(self) -> Evaluation:
        """Evaluate the snapshot that is loaded on the test images."""
        split = self._store.split("test")
        rows = np.arange(len(split.labels))
        return evaluate(self.module, split.images, split.labels, rows, *self._colours, self._device)

    @property
    def _colours(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        return self._store.channel_mean, self._store.channel_std

    @property
    def _device(self) -> torch.device:
        return self._model.parameters.device
