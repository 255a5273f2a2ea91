"""Recomputes a run's batch accounting from events.jsonl: was every batch applied exactly once, whatever failed?"""

from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from psys.errors import PsysError
from psys.ps.events import LeasesReturned, PushRefused, RunEnded, RunEvent, RunStarted, SettingsChanged, UpdateApplied
from psys.ps.ledger import BatchAccount
from psys.ps.messages import Lease
from psys.run.events import read_events
from psys.run.segments import in_words

_ROWS = {
    "batches": "batches of the run",
    "leased": "leases granted",
    "applied": "batches applied",
    "reissued": "leases of batches leased before",
    "duplicates": "pushes refused as duplicates",
    "expired": "pushes refused as expired",
    "damaged": "pushes refused as not finite",
    "late": "pushes refused as late",
    "unfinished": "batches not applied",
    "lost": "batches lost",
}


class RecomputedAccount:
    """The batch accounting that follows from the events of a run, added in order; `problems` are contradictions.

    A lease ends when its batch is applied or returned, and a returned batch is leased again. The events do not list the
    leases: the account counts them by their ends, and an update's attempts by the returns before the update.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.resumes = 0
        self.changes: list[SettingsChanged] = []
        self.reported: BatchAccount | None = None
        self.late: defaultdict[str, list[int]] = defaultdict(list)  # batches of the leases given up, by worker
        self._batches = self._returned = 0
        self._refused: Counter[str] = Counter()
        self._returns: Counter[int] = Counter()  # by batch
        self._updates: list[tuple[int, ...]] = []  # batches of each version, beginning with version 1

    def add(self, event: RunEvent) -> None:
        """Take in the next event."""
        match event:
            case RunStarted():
                self._start(event)
            case UpdateApplied():
                self._update(event)
            case PushRefused(receipt=receipt, lease=lease):
                self._refused[receipt] += 1
                if receipt == "damaged":
                    self._take_back(lease)
            case LeasesReturned(leases=leases, late=late):
                for lease in leases:
                    self._take_back(lease)
                    if late:
                        self.late[lease.worker].append(lease.batch)
            case SettingsChanged():
                self._change(event)
            case RunEnded():
                self.reported = BatchAccount(**{name: getattr(event, name) for name in _ROWS})

    def account(self) -> BatchAccount:
        """The totals that the run's ledger should have."""
        applied = [batch for batches in self._updates for batch in batches]
        missing = self._batches - len(set(applied))
        return BatchAccount(
            batches=self._batches,
            leased=len(applied) + self._returned,
            applied=len(applied),
            reissued=self._returned,
            duplicates=self._refused["duplicate"],
            expired=self._refused["expired"],
            damaged=self._refused["damaged"],
            late=self._refused["late"],
            unfinished=missing,
            lost=missing if self.reported and not self.reported.unfinished else 0,
        )

    def check(self) -> None:
        """After the last event: add contradictions between batches, and to the totals that the run reported."""
        applied = Counter(batch for batches in self._updates for batch in batches)
        repeated = sorted(batch for batch, times in applied.items() if times > 1)
        if repeated:
            self.problems.append(f"batches applied more than once: {_first_few(repeated)}")
        unknown = sorted(batch for batch in applied if not 0 <= batch < self._batches)
        if unknown:
            self.problems.append(f"batches that are not part of the run: {_first_few(unknown)}")
        if self.reported is None:
            return
        stopped_early = self.reported.unfinished > 0  # some leases may have neither been applied nor returned
        for name, value in vars(self.account()).items():
            reported = getattr(self.reported, name)
            if reported != value and not (stopped_early and name in ("leased", "reissued")):
                self.problems.append(f"the run reported {name} {reported}, its events add up to {value}")

    def _start(self, event: RunStarted) -> None:
        """At the start or at a checkpoint: later updates are undone, and batches that were leased are due again."""
        self.resumes += event.event == "resume"
        self.reported = None
        if not 0 <= event.version <= len(self._updates):
            self.problems.append(f"resumed at version {event.version}, but the updates end at {len(self._updates)}")
        del self._updates[event.version :]
        counts = Counter(event.counts)
        self._batches = event.batches
        self._returned = counts["leased"] - sum(map(len, self._updates))
        self._refused = Counter(
            duplicate=counts["duplicates"], expired=counts["expired"], damaged=counts["damaged"], late=counts["late"]
        )
        self._returns = Counter(event.attempts)

    def _change(self, event: SettingsChanged) -> None:
        self.changes.append(event)
        if not 0 <= event.version <= len(self._updates):
            self.problems.append(
                f"settings changed at version {event.version}, but the updates end at {len(self._updates)}"
            )

    def _update(self, event: UpdateApplied) -> None:
        self._updates.append(event.batches)
        if event.version != len(self._updates):
            self.problems.append(f"update {event.version} where update {len(self._updates)} was expected")
        if len(event.attempts) != len(event.batches):
            self.problems.append(
                f"update {event.version} has {len(event.batches)} batches, {len(event.attempts)} attempts"
            )
        for batch, attempt in zip(event.batches, event.attempts, strict=False):
            if attempt != (returns := self._returns[batch]):
                self.problems.append(
                    f"batch {batch} was applied at attempt {attempt} but returned {returns} times before"
                )

    def _take_back(self, lease: Lease) -> None:
        self._returned += 1
        self._returns[lease.batch] += 1


def audit(events: Path, console: Console) -> None:
    """Recompute a run's batch accounting from events.jsonl and compare it with the totals that the run reported.

    Prints the accounting. Raises PsysError if it contradicts itself or the totals, or if the file cannot be read.
    """
    recomputed = RecomputedAccount()
    for event in read_events(events):
        recomputed.add(event)
    recomputed.check()
    title = f"{events.parent}: batch accounting recomputed from {events.name}"
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in vars(recomputed.account()).items():
        table.add_row(_ROWS[name], str(value))
    for worker, batches in sorted(recomputed.late.items()):
        table.add_row(f"leases of {worker} given up as late", f"{len(batches)}, of batches {_first_few(batches)}")
    table.add_row("resumes", str(recomputed.resumes))
    for change in recomputed.changes:
        table.add_row("settings changed", f"at version {change.version}: {', '.join(in_words(change.changed))}")
    console.print(table)
    if recomputed.problems:
        raise PsysError(f"the batch accounting of {events.parent} is wrong: {'; '.join(recomputed.problems[:5])}")
    console.print(
        "The run has not ended: it is still going on, or it was killed and can be resumed."
        if recomputed.reported is None
        else "The accounting equals the totals that the run reported at its end."
    )


def _first_few(batches: list[int]) -> str:
    return ", ".join(map(str, batches[:5])) + (", ..." if len(batches) > 5 else "")
