"""Diaries written by hand, wrong in one way each, and those of random runs of the real ledger, which add up."""

import io
import json
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from psys.errors import PsysError
from psys.ps.ledger import Lease, Ledger, LedgerState, Receipt
from psys.run.audit import Books, audit

Event = dict[str, Any]


def beginning(event: str = "start", version: int = 0, attempts: dict[str, int] | None = None, **counts: int) -> Event:
    """Of four batches."""
    zeros = dict.fromkeys(("leased", "reissued", "duplicates", "expired", "damaged"), 0)
    return {
        "event": event,
        "version": version,
        "batches": 4,
        "counts": {**zeros, **counts},
        "attempts": attempts or {},
    }


def update(version: int, *batches: int, attempts: tuple[int, ...] | None = None) -> Event:
    return {"event": "update", "version": version, "batches": batches, "attempts": attempts or [0] * len(batches)}


def lease(batch: int, attempt: int = 0) -> tuple[int, int, str, int, int]:
    return batch, attempt, "worker0", 0, 0


def refused(receipt: str, batch: int, attempt: int = 0) -> Event:
    return {"event": "refused", "receipt": receipt, "lease": lease(batch, attempt)}


def returned(*batches: int) -> Event:
    return {"event": "returned", "leases": [lease(batch) for batch in batches]}


def end(**counts: int) -> Event:
    whole = {"batches": 4, "leased": 4, "applied": 4}
    zeros = dict.fromkeys(("reissued", "duplicates", "expired", "damaged", "unfinished", "lost"), 0)
    return {"event": "end", "seconds": 1.0, **whole, **zeros, **counts}


CLEAN = [
    beginning(),
    {"event": "join", "worker": "worker0"},
    update(1, 0),
    returned(1),
    refused("damaged", 2),
    refused("duplicate", 0),
    refused("expired", 1),
    update(2, 1, 2, attempts=(1, 1)),
    {"event": "snapshot", "version": 2},
    update(3, 3),
    end(leased=6, reissued=2, damaged=1, duplicates=1, expired=1),
]


def audited(folder: Path, events: list[Event]) -> str:
    """What is printed."""
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    out = io.StringIO()
    audit(path, Console(file=out, width=200))
    return out.getvalue()


def test_a_clean_run(tmp_path: Path) -> None:
    printed = audited(tmp_path, CLEAN)
    rows = dict(line.strip("│ ").split("│") for line in printed.splitlines() if line.startswith("│"))
    assert {name.strip(): int(value) for name, value in rows.items()} == {
        "batches of the run": 4,
        "leases handed out": 6,
        "batches applied": 4,
        "leases handed out again": 2,
        "pushes refused as duplicates": 1,
        "pushes refused as too late": 1,
        "gradients refused as not finite": 1,
        "batches not applied": 0,
        "batches lost": 0,
        "servers resumed": 0,
    }
    assert "They are what the run itself said at its end." in printed


RESUMED = [
    beginning(),
    update(1, 0),
    refused("duplicate", 0),  # after the checkpoint, so that nobody knows of it
    update(2, 1),
    returned(2),
    update(3, 2, attempts=(1,)),
    beginning("resume", 1, {"1": 1, "2": 1}, leased=3),  # two were out
    refused("expired", 1),
    update(2, 2, attempts=(1,)),
    update(3, 1, attempts=(1,)),
    update(4, 3),
    end(leased=6, reissued=2, expired=1),
]


def test_a_resume_undoes_updates(tmp_path: Path) -> None:
    printed = audited(tmp_path, RESUMED)
    assert "They are what the run itself said" in printed
    assert printed.split("servers resumed")[1].split("│")[1].strip() == "1"


def test_a_resume_without_a_checkpoint_undoes_all(tmp_path: Path) -> None:
    audited(tmp_path, [*CLEAN[:-1], beginning("resume"), *RESUMED[:6], beginning("resume"), *CLEAN[1:]])


def test_a_run_that_was_stopped_is_resumed(tmp_path: Path) -> None:
    stopped = end(leased=3, applied=1, unfinished=3)
    resume = beginning("resume", 1, {"1": 1, "2": 1}, leased=3)
    rest = [update(2, 1, 2, attempts=(1, 1)), update(3, 3)]
    audited(tmp_path, [beginning(), update(1, 0), stopped])  # where two leases are out
    audited(tmp_path, [beginning(), update(1, 0), stopped, resume, *rest, end(leased=6, reissued=2)])


@pytest.mark.parametrize("events", [[], CLEAN[:1], CLEAN[:-1], RESUMED[:-1], [*CLEAN, beginning("resume")]])
def test_a_run_without_an_end_is_said_to_have_none(tmp_path: Path, events: list[Event]) -> None:
    assert "The run has no end" in audited(tmp_path, events)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read .*events\.jsonl"):
        audit(tmp_path / "events.jsonl", Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([beginning(), *(update(v, b) for v, b in enumerate((0, 1, 2, 2, 3), 1)), end()], "applied more than once: 2"),
        ([beginning(), update(1, 0, 0, 1, 2, 3), end()], "applied more than once: 0"),
        ([beginning(), update(1, 0, 1, 2), end()], "the run says applied 4, its events come to 3"),
        ([beginning(), update(1, 0, 1, 2), end(leased=3, applied=3)], "the run says lost 0, its events come to 1"),
        ([beginning(), update(1, 0, 1, 2, attempts=(0, 1, 0))], "batch 1 was applied at attempt 1 and had been return"),
        ([beginning(), returned(0), update(1, 0)], "batch 0 was applied at attempt 0 and had been returned 1 times"),
        (
            [beginning(), refused("damaged", 0), update(1, 0)],
            "batch 0 was applied at attempt 0 and had been returned 1",
        ),
        ([*RESUMED[:7], update(2, 1)], "batch 1 was applied at attempt 0 and had been returned 1 times"),
        ([beginning(), update(1, 0, 4)], "batches that the run does not have: 4"),
        ([beginning(), update(1, -1)], "batches that the run does not have: -1"),
        ([update(1, 0)], "batches that the run does not have: 0"),
        ([beginning(), update(2, 0)], "update 2 stands where 1 should"),
        ([beginning(), update(1, 0), update(1, 1)], "update 1 stands where 2 should"),
        ([beginning(), update(1, 0), beginning("resume", 2)], "resumed at version 2, but the updates end at 1"),
        ([beginning(), update(1, 0), beginning("resume", -1)], "resumed at version -1, but the updates end at 1"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, events: list[Event], problem: str) -> None:
    with pytest.raises(PsysError, match=r"the books of .* do not add up") as caught:
        audited(tmp_path, events)
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", [name for name in end() if name not in ("event", "seconds", "unfinished")])
def test_a_count_that_is_not_what_the_run_said_is_named(tmp_path: Path, name: str) -> None:
    value = CLEAN[-1][name]
    with pytest.raises(PsysError, match=f"the run says {name} {value + 1}, its events come to {value}"):
        audited(tmp_path, [*CLEAN[:-1], {**CLEAN[-1], name: value + 1}])


NEEDED = {
    "start": ["version", "batches", "counts", "attempts"],
    "resume": ["version", "batches", "counts", "attempts"],
    "update": ["version", "batches", "attempts"],
    "returned": ["leases"],
    "refused": ["receipt"],
    "end": [name for name in end() if name not in ("event", "seconds")],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NEEDED.items() for name in names])
def test_a_missing_field_is_named_with_its_event(tmp_path: Path, kind: str, name: str) -> None:
    events = [*CLEAN[:-1], beginning("resume"), *CLEAN[1:]]
    number = next(number for number, event in enumerate(events) if event["event"] == kind)
    events[number] = {key: value for key, value in events[number].items() if key != name}
    with pytest.raises(PsysError, match=rf"event {number + 1} \({kind}\): not as psys writes it: KeyError\('{name}'\)"):
        audited(tmp_path, events)


WRONG: tuple[Any, ...] = (None, True, -1, 7, 1.5, 10**30, "", "1", [], [[]], [None], {}, {"a": 1}, [["x"]])


def test_fields_of_another_kind_are_psys_errors(tmp_path: Path) -> None:
    def places(value: Any) -> list[tuple[Any, Any]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        return [place for key in keys for place in [(value, key), *places(value[key])]]

    whole = json.loads(json.dumps([*CLEAN[:-1], beginning("resume"), *RESUMED]))
    said = audited(tmp_path, whole)
    refusals = 0
    for seed in range(300):
        random, events = Random(seed), deepcopy(whole)
        inside, key = random.choice([place for place in places(events) if place[0] is not events])
        inside[key] = random.choice(WRONG)
        try:
            assert audited(tmp_path, events)
        except PsysError:
            refusals += 1
    assert refusals > 120  # not of what does not count: times, names, and all that came before the last resume
    assert audited(tmp_path, whole) == said


class Diary:
    """What a server writes while a ledger is worked on at random."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.ledger = Ledger(1, batches, 1)
        self.events: list[Event] = []
        self.version = 0
        self.checkpoint = (0, self.ledger.state())
        self.out: list[Lease] = []
        self.accepted: list[Lease] = []
        self.leased: list[Lease] = []
        self.go_on("start")

    def go_on(self, event: str) -> None:
        self.version, state = self.checkpoint
        self.ledger = Ledger(1, self.batches, 1)
        self.ledger.restore(LedgerState.model_validate_json(state.model_dump_json()))
        self.out, self.accepted = [], []
        said = {"batches": self.batches, "counts": state.counts, "attempts": state.attempts}
        self.events.append({"event": event, "version": self.version, **said})

    def push(self, lease: Lease, finite: bool = True) -> None:
        receipt = self.ledger.accept(lease, finite)
        if receipt is Receipt.ACCEPTED:
            self.accepted.append(lease)
        else:
            self.events.append({"event": "refused", "receipt": receipt.value, "lease": lease})

    def move(self, what: str, which: int) -> None:
        def pick(leases: list[Lease]) -> Lease:
            return leases.pop(which % len(leases))

        match what:
            case "lease" if not self.ledger.exhausted:
                self.out.append(self.ledger.lease(f"worker{which}", self.version, 0))
                self.leased.append(self.out[-1])
            case "push" if self.out:
                self.push(pick(self.out))
            case "nan" if self.out:
                self.push(pick(self.out), finite=False)
            case "late" if self.leased:
                if (lease := self.leased[which % len(self.leased)]) not in self.out:
                    self.push(lease)
            case "die" if self.out:
                lost = [pick(self.out)]
                self.ledger.take_back(lost)
                self.events.append({"event": "returned", "leases": lost})
            case "update" if self.accepted:
                applied, self.accepted = self.accepted[: 1 + which % 3], self.accepted[1 + which % 3 :]
                for each in applied:
                    self.ledger.apply(each)
                self.version += 1
                batches, attempts = [each.batch for each in applied], [each.attempt for each in applied]
                made = {"event": "update", "version": self.version, "batches": batches, "attempts": attempts}
                self.events.append(made)
            case "save":
                self.checkpoint = (self.version, self.ledger.state())
            case "resume":
                self.go_on("resume")

    def finish(self) -> None:
        while not self.ledger.finished:
            for what in ("lease", "push", "update"):
                self.move(what, 0)

    def end(self) -> None:
        self.events.append({"event": "end", **vars(self.ledger.proof())})


MOVES = ["lease", "lease", "lease", "push", "push", "update", "update", "nan", "late", "die", "save", "resume"]


@given(
    batches=st.integers(1, 12),
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 9)), max_size=80),
    finish=st.booleans(),
)
def test_the_books_of_any_run_add_up(batches: int, moves: list[tuple[str, int]], finish: bool) -> None:
    diary = Diary(batches)
    for move in moves:
        diary.move(*move)
    if finish:
        diary.finish()
    diary.end()
    books = Books()
    for event in diary.events:
        books.take(json.loads(json.dumps(event)))
    books.close()
    assert books.problems == []
    assert books.resumed == sum(event["event"] == "resume" for event in diary.events)
    if finish:
        assert books.account() == vars(diary.ledger.proof())
