"""What a run shows while it trains: a live bar on a terminal, plain lines in a log."""

import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from psys.ps.coordinator import Update

_LINE_SECONDS = 10.0


@dataclass
class Status:
    """The figures of a running training; `loss`, `accuracy` and `staleness` are smoothed over about 50 updates."""

    mode: str
    epochs: int
    workers: int = 0
    epochs_done: float = 0.0
    images: int = 0
    train_seconds: float = 0.0
    loss: float = field(default=float("nan"))
    accuracy: float = 0.0
    staleness: float = 0.0

    def add(self, update: Update, images: int, seconds: float, loss: float, accuracy: float) -> None:
        """Take in one update: its images, the training seconds it was made at, its views' mean loss and accuracy."""
        staleness = sum(update.staleness) / len(update.staleness)
        keep = 0.98 if self.images else 0.0
        self.loss = keep * self.loss + (1 - keep) * loss if self.images else loss
        self.accuracy = keep * self.accuracy + (1 - keep) * accuracy
        self.staleness = keep * self.staleness + (1 - keep) * staleness
        self.images += images
        self.epochs_done, self.train_seconds = update.epochs_done, seconds

    def __str__(self) -> str:
        speed = self.images / self.train_seconds if self.train_seconds else 0.0
        parts = [
            self.mode,
            f"{self.workers} workers",
            f"epoch {self.epochs_done:.1f}/{self.epochs}",
            f"{speed:.0f} images/s",
            f"loss {self.loss:.3f}",
            f"accuracy {self.accuracy:.1%}",
            f"staleness {self.staleness:.1f}",
        ]
        return " · ".join(parts)


class ProgressView:
    """Shows a Status: a bar that moves on a terminal, else a line every 10 s. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("waiting for workers", total=None)
        self._said = time.monotonic()

    def __enter__(self) -> "ProgressView":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, status: Status) -> None:
        """Bring the display up to date; cheap enough to call several times a second."""
        text = str(status) if status.images else f"{status.mode} · {status.workers} workers · waiting"
        if self._console.is_terminal:
            self._progress.update(self._task, total=status.epochs, completed=status.epochs_done, description=text)
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            left = _seconds_left(status)
            self._console.print(f"{text} · {left:.0f} s left" if left is not None else text, soft_wrap=True)


def _seconds_left(status: Status) -> float | None:
    if not status.epochs_done:
        return None
    return status.train_seconds * (status.epochs / status.epochs_done - 1)
