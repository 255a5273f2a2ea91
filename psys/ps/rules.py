"""When snapshots, checkpoints and the end of a run are due, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunRules:
    """When things are due. Times are seconds."""

    snapshot_epochs: float = 1.0
    """epochs between snapshots"""
    checkpoint_seconds: float | None = None
    """between checkpoints; None: they are due by updates"""
    checkpoint_updates: int | None = None
    """between checkpoints; None: they are due by time"""
    start_timeout: float = 60.0
    """from the first request on: how long it waits for the workers that start together"""
    early_stopping: float | None = None
    """epochs without a better evaluation after which the run stops; None: it does not"""
    leave_timeout: float = 10.0
    """from the last batch on: how long the run waits for its workers to leave"""
