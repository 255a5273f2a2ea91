"""What a run shows while it trains: a live bar on a terminal, plain lines in a log."""

import time
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

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
    resumed_seconds: float = 0.0  # of them, those before the checkpoint that this server started from
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
        if not self.images:
            return f"{self.mode} · {self.workers} workers · waiting for the first gradient"
        seconds = self.train_seconds - self.resumed_seconds
        speed = self.images / seconds if seconds else 0.0
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
    """Shows a Status: figures over a moving bar on a terminal, else a line every 10 s. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = Text()
        self._bar = Progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"))
        self._task = self._bar.add_task("", total=None)
        self._live = (
            Live(Group(self._text, self._bar), console=console, transient=True) if console.is_terminal else None
        )
        self._said = time.monotonic()

    def __enter__(self) -> "ProgressView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Bring the display up to date; cheap enough to call several times a second."""
        if self._live:
            self._text.plain = str(status)
            self._bar.update(self._task, total=status.epochs, completed=status.epochs_done)
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            left = _seconds_left(status)
            self._console.print(f"{status} · {left:.0f} s left" if left is not None else str(status), soft_wrap=True)


def _seconds_left(status: Status) -> float | None:
    if not status.images:
        return None
    return status.train_seconds * (status.epochs / status.epochs_done - 1)
