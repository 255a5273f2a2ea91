"""The figures of a running training, for the progress display and the log."""

from dataclasses import dataclass, field

from psys.ps.events import UpdateApplied
from psys.ps.messages import Evaluated


@dataclass
class Status:
    """The figures of a running training; `loss`, `accuracy` and `staleness` are smoothed over about 50 updates."""

    mode: str
    epochs: int
    workers: int = 0
    epochs_done: float = 0.0
    updates: int = 0  # since this server started, as `images`
    images: int = 0
    train_seconds: float = 0.0
    resumed_seconds: float = 0.0  # of train_seconds: those before the checkpoint that this server started from
    loss: float = float("nan")
    accuracy: float = 0.0
    staleness: float = 0.0
    evaluated: Evaluated | None = None
    """the newest snapshot that was evaluated"""
    best: Evaluated | None = None
    """the best snapshot that was evaluated"""
    waiting: dict[str, int] = field(default_factory=dict)
    """workers without a batch: how many of them wait for each reason (see psys.ps.coordinator.Wait)"""

    def add(self, event: UpdateApplied) -> None:
        """Take in one update."""
        staleness = sum(event.staleness) / len(event.staleness)
        keep = 0.98 if self.updates else 0.0
        self.loss = keep * self.loss + (1 - keep) * event.loss if self.updates else event.loss
        self.accuracy = keep * self.accuracy + (1 - keep) * event.accuracy
        self.staleness = keep * self.staleness + (1 - keep) * staleness
        self.updates += 1
        self.images += event.images
        self.epochs_done, self.train_seconds = event.epochs, event.seconds

    def why_waiting(self) -> str:
        """Why workers wait, as `waiting: 1 worker waits for the workers that start together`; "" if none waits."""
        reasons = [f"{count} worker{'s: each' if count > 1 else ''} {reason}" for reason, count in self.waiting.items()]
        return f"waiting: {', '.join(reasons)}" if reasons else ""

    def __str__(self) -> str:
        if not self.updates:
            return f"{self.mode} · {self.workers} workers · {self.why_waiting() or 'waiting for the first gradient'}"
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
        if self.evaluated:
            parts.append(f"held-out {_accuracy(self.evaluated)}")
        if self.best and self.best != self.evaluated:
            parts.append(f"best {_accuracy(self.best)}")
        return " · ".join(parts)


def _accuracy(evaluated: Evaluated) -> str:
    return f"{evaluated.accuracy:.1%} (epoch {evaluated.epochs:.4g})"
