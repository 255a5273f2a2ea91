"""What a run shows while it trains: a live bar on a terminal, plain lines in a log."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from psys.run.status import Status

_LINE_SECONDS = 10.0


class ProgressView:
    """Shows a Status: figures over a moving bar on a terminal, else a line every 10 s. Use as a context manager.

    Without an update for 10 s the view says why workers wait.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = Text()
        self._bar = Progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"))
        self._task = self._bar.add_task("", total=None)
        self._live = (
            Live(Group(self._text, self._bar), console=console, transient=True) if console.is_terminal else None
        )
        self._line_time = self._update_time = time.monotonic()
        self._updates = 0

    def __enter__(self) -> "ProgressView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Bring the display up to date; cheap enough to call several times a second."""
        now = time.monotonic()
        if status.updates != self._updates:
            self._updates, self._update_time = status.updates, now
        parts = [str(status)]
        if status.updates and status.waiting and now - self._update_time >= _LINE_SECONDS:
            parts.append(status.why_waiting())
        if self._live:
            self._text.plain = " · ".join(parts)
            self._bar.update(self._task, total=status.epochs, completed=status.epochs_done)
        elif now - self._line_time >= _LINE_SECONDS:
            self._line_time = now
            if status.updates:
                parts.append(f"{status.train_seconds * (status.epochs / status.epochs_done - 1):.0f} s left")
            self._console.print(" · ".join(parts), soft_wrap=True)
