"""Progress of a preparation: a progress bar in a terminal, lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


class Counter:
    """Shows how many of `total` images are done, images/s, and the remaining time."""

    def __init__(self, total: int, console: Console, bar: Progress | None) -> None:
        self._total, self._console, self._bar = total, console, bar
        self._task = TaskID(0) if bar is None else bar.add_task("", total=total, rate=0.0)
        self._done = self._prepared = 0
        self._first: tuple[int, float] | None = None  # images and time of the first result, excluding start-up
        self._printed = 0.0

    def count(self, images: int, reused: bool) -> None:
        """Count images as done, by this process or `reused` from an earlier one."""
        now = time.monotonic()
        self._done += images
        if not reused:
            self._prepared += images
            if self._first is None:
                self._first, self._printed = (images, now), now
        first, begin = self._first or (0, now)
        rate = (self._prepared - first) / (now - begin) if now > begin else 0.0
        if self._bar:
            self._bar.update(self._task, completed=self._done, rate=rate)
        elif self._first and now - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = now
            remaining = (self._total - self._done) / rate
            print_line(self._console, f"{self._done}/{self._total} images, {rate:.0f} images/s, {remaining:.0f} s left")


@contextmanager
def progress(total: int, console: Console) -> Iterator[Counter]:
    """A counter within the block."""
    if not console.is_terminal:
        yield Counter(total, console, None)
        return
    speed = TextColumn("{task.fields[rate]:.0f} images/s")
    columns = TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        yield Counter(total, console, bar)


def print_line(console: Console, line: str) -> None:
    """Print a line without wrapping or markup."""
    # A file name may contain bytes that are not UTF-8.
    printable = line.encode(errors="backslashreplace").decode()
    console.print(printable, highlight=False, soft_wrap=True, markup=False)
