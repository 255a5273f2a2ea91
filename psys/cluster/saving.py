"""What server 0 writes to the run's directory: events, snapshots, checkpoints."""

import time
from collections.abc import Sequence

from psys.cluster.evaluation import SnapshotEvaluation
from psys.cluster.shard_server import ShardServer
from psys.compute.device import return_freed_memory
from psys.errors import LostServerError, reason_of, say
from psys.ps.effects import Save
from psys.ps.events import CheckpointFailed, CheckpointSaved, RunEvent, SnapshotFailed, SnapshotSaved
from psys.ps.store import SliceState
from psys.run.checkpoint import CheckpointMetadata, concatenate_states
from psys.run.directory import RunDirectory
from psys.run.events import EventLog
from psys.run.snapshots import save_snapshot
from psys.transport.chunks import read_state
from psys.transport.protocol import RunRejectedError, ServerUnavailableError, ShardControl


class Saver:
    """Writes what servers have kept. `sizes`: by server, the elements of each vector of its state."""

    def __init__(
        self,
        run: RunDirectory,
        events: EventLog,
        own: ShardServer,
        others: Sequence[ShardControl],
        sizes: Sequence[dict[str, int]],
        evaluation: SnapshotEvaluation,
    ) -> None:
        self._run, self._events, self._own, self._others, self._sizes = run, events, own, others, sizes
        self._evaluation = evaluation
        self._checkpoints = run.checkpoints(run.config().keep_checkpoints)

    def log(self, events: Sequence[RunEvent]) -> None:
        """Write events. Raises PsysError if there is no room."""
        for event in events:
            self._events.write(event)

    def save(self, save: Save, workers_named: int) -> None:
        """Write a snapshot, a checkpoint or both; a full disk is logged. Raises LostServerError if a server is gone."""
        try:
            state = concatenate_states(self._states(save))
        except (ServerUnavailableError, RunRejectedError) as error:
            raise LostServerError(f"lost a server and its part of the parameters: {error}") from None
        if save.snapshot:
            self._save_snapshot(save, state)
        if save.ledger is not None:
            metadata = CheckpointMetadata(
                version=save.version, train_seconds=save.seconds, workers_named=workers_named, ledger=save.ledger
            )
            self._save_checkpoint(metadata, state)
        del state
        return_freed_memory()

    def _states(self, save: Save) -> list[SliceState]:
        """All servers' parts, server 0's first; no server keeps them any longer."""
        own = self._own.kept(save.step)
        names = own.vectors().keys()
        states = [own]
        for other, sizes in zip(self._others, self._sizes, strict=True):
            states.append(read_state(other, save.step, own.version, {name: sizes[name] for name in names}))
        assert own.version == save.version
        self._own.forget_state(save.step)
        return states

    def _save_snapshot(self, save: Save, state: SliceState) -> None:
        try:
            save_snapshot(state.parameters, state.statistics, self._run.snapshot_path(save.version))
        except OSError as error:  # the run goes on: the next snapshot may be written
            say(f"cannot write a snapshot: {reason_of(error)}")
            self._events.write(SnapshotFailed(version=save.version, reason=reason_of(error)))
        else:
            self._events.write(SnapshotSaved(version=save.version, epochs=save.epochs, seconds=save.seconds))
            self._evaluation.submit(save.version, save.epochs)

    def _save_checkpoint(self, metadata: CheckpointMetadata, state: SliceState) -> None:
        began = time.monotonic()
        try:
            self._events.sync()  # all updates before the checkpoint are on the disk first
            self._checkpoints.save(metadata, state)
        except OSError as error:  # the run goes on: the next may be written, and the one before is still there
            say(f"cannot write a checkpoint: {reason_of(error)}")
            self._events.write(CheckpointFailed(version=metadata.version, reason=reason_of(error)))
        else:
            took = round(time.monotonic() - began, 4)
            self._events.write(CheckpointSaved(version=metadata.version, seconds=metadata.train_seconds, took=took))
