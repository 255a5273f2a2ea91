"""What a study shows while its trials run: a bar on a terminal, and a line for each trial."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from psys.tradeoff.record import TrialLog, TrialRecord


class StudyProgress:
    """Shows the trials of a study that are to run, as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "StudyProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, log: TrialLog, total: int, current: str) -> None:
        """Bring the bar up to date; `current`: what runs."""
        self._bar.update(self._task, description=current, total=total, completed=len(log.records))

    def report(self, record: TrialRecord, log: TrialLog, total: int) -> None:
        """Show a trial that has finished, and the time that the others take if they take as long as trials so far."""
        if record.status == "done":
            result = log.run(record.trial).result()
            how = f"{result['best']['test']['accuracy']:.1%}, {result['train_seconds']:.1f} s of training"
        else:
            how = f"failed: {record.reason}"
        line = f"{len(log.records)}/{total} {record.trial}: {how}, {record.seconds:.0f} s in all"
        if left := remaining(list(log.records.values()), total):
            line += f"; about {left / 60:.0f} min left"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


def remaining(records: Sequence[TrialRecord], total: int) -> float:
    """Seconds that the trials without a record take one after the other, by the mean of those done; 0: none is."""
    done = [record.seconds for record in records if record.status == "done"]
    return (total - len(records)) * sum(done) / len(done) if done else 0.0
