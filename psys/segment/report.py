"""What a person sees of a preparation: a bar in a terminal, plain lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


class Counter:
    """Shows how many of `total` images are done, images/s, and the time left."""

    def __init__(self, total: int, console: Console, bar: Progress | None) -> None:
        self._total, self._console, self._bar = total, console, bar
        self._task = TaskID(0) if bar is None else bar.add_task("", total=total, rate=0.0)
        self._done = self._prepared = 0
        self._first: tuple[int, float] | None = None  # images of the first shard, when it came: what starting took
        self._told = 0.0

    def count(self, images: int, reused: bool) -> None:
        """So many more images are done, by this run or `reused` from one before."""
        now = time.monotonic()
        self._done += images
        if not reused:
            self._prepared += images
            if self._first is None:
                self._first, self._told = (images, now), now
        first, begin = self._first or (0, now)
        rate = (self._prepared - first) / (now - begin) if now > begin else 0.0
        if self._bar:
            self._bar.update(self._task, completed=self._done, rate=rate)
        elif self._first and now - self._told > SECONDS_BETWEEN_LINES:
            self._told = now
            left = (self._total - self._done) / rate
            say(self._console, f"{self._done}/{self._total} images, {rate:.0f} images/s, {left:.0f} s left")


@contextmanager
def progress(total: int, console: Console) -> Iterator[Counter]:
    """A counter for the length of a block."""
    if not console.is_terminal:
        yield Counter(total, console, None)
        return
    speed = TextColumn("{task.fields[rate]:.0f} images/s")
    columns = TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        yield Counter(total, console, bar)


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    # The name of a file need not be UTF-8.
    printable = line.encode(errors="backslashreplace").decode()
    console.print(printable, highlight=False, soft_wrap=True, markup=False)
