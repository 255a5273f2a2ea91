"""A run's books made up again from its events alone: was every batch applied exactly once, whatever died?"""

from collections import Counter
from operator import index
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from psys.errors import PsysError
from psys.run.events import read_events

_ROWS = {
    "batches": "batches of the run",
    "leased": "leases handed out",
    "applied": "batches applied",
    "reissued": "leases handed out again",
    "duplicates": "pushes refused as duplicates",
    "expired": "pushes refused as too late",
    "damaged": "gradients refused as not finite",
    "unfinished": "batches not applied",
    "lost": "batches lost",
}


class Books:
    """The account as it follows from one event after the other; `problems` are what cannot be.

    A lease ends when its batch is applied or when it is returned, and a returned batch is leased again: so the leases
    are counted from the ends they came to, and each update's attempts from what was returned before.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.resumed = 0
        self.end: dict[str, int] | None = None
        self._batches = self._returned = 0
        self._refused: Counter[str] = Counter()
        self._returns: Counter[int] = Counter()  # by batch
        self._updates: list[list[int]] = []  # batches of each version, the first being version 1

    def take(self, event: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or their like if the event is not as psys writes it."""
        match event["event"]:
            case "start" | "resume":
                self._go_on(event)
            case "update":
                self._update(event)
            case "refused":
                self._refused[event["receipt"]] += 1
                if event["receipt"] == "damaged":
                    self._take_back(event["lease"])
            case "returned":
                for lease in event["leases"]:
                    self._take_back(lease)
            case "end":
                self.end = {name: index(event[name]) for name in _ROWS}

    def account(self) -> dict[str, int]:
        """What the ledger should say."""
        applied = [batch for batches in self._updates for batch in batches]
        missing = self._batches - len(set(applied))
        return {
            "batches": self._batches,
            "leased": len(applied) + self._returned,
            "applied": len(applied),
            "reissued": self._returned,
            "duplicates": self._refused["duplicate"],
            "expired": self._refused["expired"],
            "damaged": self._refused["damaged"],
            "unfinished": missing,
            "lost": missing if self.end and not self.end["unfinished"] else 0,
        }

    def close(self) -> None:
        """Compare with what the run said at its end; of one that was stopped early, leases may be out."""
        applied = Counter(batch for batches in self._updates for batch in batches)
        twice = sorted(batch for batch, times in applied.items() if times > 1)
        if twice:
            self.problems.append(f"batches applied more than once: {_few(twice)}")
        strange = sorted(batch for batch in applied if not 0 <= batch < self._batches)
        if strange:
            self.problems.append(f"batches that the run does not have: {_few(strange)}")
        if self.end is None:
            return
        stopped = self.end["unfinished"] > 0
        for name, value in self.account().items():
            said = self.end[name]
            if said != value and not (stopped and name in ("leased", "reissued")):
                self.problems.append(f"the run says {name} {said}, its events come to {value}")

    def _go_on(self, event: dict[str, Any]) -> None:
        """At the start, or from a checkpoint: what came after that is undone, and what was out is due again."""
        self.resumed += event["event"] == "resume"
        self.end = None
        version, counts = index(event["version"]), {name: index(count) for name, count in event["counts"].items()}
        if not 0 <= version <= len(self._updates):
            self.problems.append(f"resumed at version {version}, but the updates end at {len(self._updates)}")
        del self._updates[version:]
        self._batches = index(event["batches"])
        self._returned = counts["leased"] - sum(map(len, self._updates))
        self._refused = Counter(duplicate=counts["duplicates"], expired=counts["expired"], damaged=counts["damaged"])
        self._returns = Counter({int(batch): index(attempt) for batch, attempt in event["attempts"].items()})

    def _update(self, event: dict[str, Any]) -> None:
        batches = [index(batch) for batch in event["batches"]]
        self._updates.append(batches)
        if event["version"] != len(self._updates):
            self.problems.append(f"update {event['version']} stands where {len(self._updates)} should")
        for batch, attempt in zip(batches, event["attempts"], strict=True):
            if attempt != self._returns[batch]:
                was = self._returns[batch]
                self.problems.append(
                    f"batch {batch} was applied at attempt {attempt} and had been returned {was} times"
                )

    def _take_back(self, lease: list[Any]) -> None:
        self._returned += 1
        self._returns[index(lease[0])] += 1


def audit(events: Path, console: Console) -> None:
    """Print the account of the run whose events these are. Raises PsysError if it does not add up, or is no account."""
    books = Books()
    for number, event in enumerate(read_events(events), 1):
        try:
            books.take(event)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise PsysError(f"{events}, event {number} ({event['event']}): not as psys writes it: {error!r}") from None
    books.close()
    table = Table(title=f"{events.parent}: its books, made up from its events", show_header=False, title_justify="left")
    for name, value in books.account().items():
        table.add_row(_ROWS[name], str(value))
    table.add_row("servers resumed", str(books.resumed))
    console.print(table)
    if books.problems:
        raise PsysError(f"the books of {events.parent} do not add up: {'; '.join(books.problems[:5])}")
    console.print(
        "The run has no end: it is going on, or it was killed and can be resumed."
        if books.end is None
        else "They are what the run itself said at its end."
    )


def _few(batches: list[int]) -> str:
    return ", ".join(map(str, batches[:5])) + (", ..." if len(batches) > 5 else "")
