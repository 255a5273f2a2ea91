"""The audit of events written by hand, with one contradiction each, and of random runs of the real ledger."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from psys.errors import PsysError
from psys.ps.events import (
    LeasesReturned,
    PushRefused,
    RunEvent,
    RunStarted,
    SettingsChanged,
    UpdateApplied,
    WorkerJoined,
)
from psys.ps.ledger import BatchAccount, Ledger, LedgerState, Receipt
from psys.ps.messages import Lease
from psys.run.audit import RecomputedAccount, audit
from psys.run.events import EventLog
from tests.support import runs

BATCHES = 4


def start(
    event: Any = "start",
    version: int = 0,
    attempts: dict[int, int] | None = None,
    batches: int = BATCHES,
    **counts: int,
) -> RunStarted:
    zeros = dict.fromkeys(("leased", "reissued", "duplicates", "expired", "damaged", "late"), 0)
    return RunStarted(
        event=event,
        store="0a1b",
        version=version,
        seconds=0.0,
        batches=batches,
        counts={**zeros, **counts},
        attempts=attempts or {},
    )


def update(version: int, *batches: int, attempts: tuple[int, ...] | None = None) -> UpdateApplied:
    return runs.update(version, batches=batches, attempts=attempts or (0,) * len(batches))


def lease(batch: int) -> Lease:
    return Lease(batch, 0, "worker0", 0, 0)


def refused(receipt: str, batch: int) -> PushRefused:
    return PushRefused(receipt=receipt, lease=lease(batch), seconds=1.0)


def returned(*batches: int) -> LeasesReturned:
    return LeasesReturned(leases=tuple(map(lease, batches)), late=False, seconds=1.0)


def given_up(*batches: int) -> LeasesReturned:
    return replace(returned(*batches), late=True)


def changed(version: int, **settings: tuple[Any, Any]) -> SettingsChanged:
    return SettingsChanged(version=version, changed=settings)


def end(**counts: int) -> RunEvent:
    return runs.end(**{"batches": BATCHES, "leased": BATCHES, "applied": BATCHES, **counts})


TOTALS = {"leased": 6, "reissued": 2, "damaged": 1, "duplicates": 1, "expired": 1, "late": 0}
BEFORE_END: list[RunEvent] = [
    start(),
    WorkerJoined(worker="worker0", seconds=0.0),
    update(1, 0),
    returned(1),
    refused("damaged", 2),
    refused("duplicate", 0),
    refused("expired", 1),
    update(2, 1, 2, attempts=(1, 1)),
    update(3, 3),
]
COMPLETE: list[RunEvent] = [*BEFORE_END, end(**TOTALS)]
RESUMED: list[RunEvent] = [
    start(),
    update(1, 0),
    refused("duplicate", 0),  # after the checkpoint, which therefore does not count it
    update(2, 1),
    returned(2),
    update(3, 2, attempts=(1,)),
    start("resume", 1, {1: 1, 2: 1}, leased=3),  # two batches were leased
    refused("expired", 1),
    update(2, 2, attempts=(1,)),
    update(3, 1, attempts=(1,)),
    update(4, 3),
    end(leased=6, reissued=2, expired=1),
]


def output_of_audit(folder: Path, events: list[RunEvent]) -> str:
    path = folder / "events.jsonl"
    path.unlink(missing_ok=True)
    with EventLog(path) as log:
        for event in events:
            log.write(event)
    out = io.StringIO()
    audit(path, Console(file=out, width=200))
    return out.getvalue()


def test_complete_run(tmp_path: Path) -> None:
    printed = output_of_audit(tmp_path, COMPLETE)
    rows = dict(line.strip("│ ").split("│") for line in printed.splitlines() if line.startswith("│"))
    assert {name.strip(): int(value) for name, value in rows.items()} == {
        "batches of the run": 4,
        "leases granted": 6,
        "batches applied": 4,
        "leases of batches leased before": 2,
        "pushes refused as duplicates": 1,
        "pushes refused as expired": 1,
        "pushes refused as not finite": 1,
        "pushes refused as late": 0,
        "batches not applied": 0,
        "batches lost": 0,
        "resumes": 0,
    }
    assert "The accounting equals the totals that the run reported at its end." in printed


def test_late_leases_are_counted_and_listed_by_worker(tmp_path: Path) -> None:
    late: list[RunEvent] = [given_up(1, 2), update(1, 0), refused("late", 2), refused("late", 2), given_up(3)]
    rest: list[RunEvent] = [refused("late", 3), update(2, 1, 2, 3, attempts=(1, 1, 1))]
    printed = output_of_audit(tmp_path, [start(), *late, *rest, end(leased=7, reissued=3, late=3)])
    rows = dict(line.strip("│ ").split("│") for line in printed.splitlines() if line.startswith("│"))
    counted = {name.strip(): value.strip() for name, value in rows.items()}
    assert counted["pushes refused as late"] == counted["leases of batches leased before"] == "3"
    assert counted["leases of worker0 given up as late"] == "3, of batches 1, 2, 3"


def test_resume_undoes_later_updates(tmp_path: Path) -> None:
    printed = output_of_audit(tmp_path, RESUMED)
    assert "The accounting equals the totals" in printed
    assert printed.split("resumes")[1].split("│")[1].strip() == "1"


def test_resume_without_a_checkpoint_undoes_every_update(tmp_path: Path) -> None:
    output_of_audit(tmp_path, [*BEFORE_END, start("resume"), *RESUMED[:6], start("resume"), *COMPLETE[1:]])


def test_run_that_was_stopped_early_and_resumed(tmp_path: Path) -> None:
    stopped = end(leased=3, applied=1, unfinished=3)
    resume = start("resume", 1, {1: 1, 2: 1}, leased=3)
    rest = [update(2, 1, 2, attempts=(1, 1)), update(3, 3)]
    output_of_audit(tmp_path, [start(), update(1, 0), stopped])  # two leases were neither applied nor returned
    output_of_audit(tmp_path, [start(), update(1, 0), stopped, resume, *rest, end(leased=6, reissued=2)])


def test_finished_run_that_was_extended(tmp_path: Path) -> None:
    """The totals of the first end are those of the batches before."""
    resume = start("resume", 3, {}, 6, **TOTALS)
    more: list[RunEvent] = [changed(3, epochs=(2, 3)), resume, update(4, 4), refused("duplicate", 4), update(5, 5)]
    printed = output_of_audit(
        tmp_path, [*COMPLETE, *more, end(**{**TOTALS, "batches": 6, "leased": 8, "applied": 6, "duplicates": 2})]
    )
    assert "The accounting equals the totals" in printed
    assert "at version 3: epochs 2 → 3" in printed
    with pytest.raises(PsysError, match="the run reported batches 4, its events add up to 6"):
        output_of_audit(tmp_path, [*COMPLETE, *more, end(**{**TOTALS, "leased": 8, "applied": 6, "duplicates": 2})])


def test_run_of_fewer_batches_after_a_larger_batch_size(tmp_path: Path) -> None:
    resume = start("resume", 2, {2: 1}, batches=3, leased=3)
    more: list[RunEvent] = [changed(2, batch_size=(64, 128), mode=("sync", "async")), resume]
    last: list[RunEvent] = [update(3, 2, attempts=(1,)), end(batches=3, leased=4, applied=3, reissued=1)]
    printed = output_of_audit(tmp_path, [start(), update(1, 0), update(2, 1), *more, *last])
    assert "at version 2: batch_size 64 → 128, mode sync → async" in printed
    with pytest.raises(PsysError, match="batches that are not part of the run: 3"):
        output_of_audit(tmp_path, [start(), update(1, 0), update(2, 1), *more, last[0], update(4, 3)])


@pytest.mark.parametrize("events", [[], COMPLETE[:1], BEFORE_END, RESUMED[:-1], [*COMPLETE, start("resume")]])
def test_run_without_an_end_is_reported_as_not_ended(tmp_path: Path, events: list[RunEvent]) -> None:
    assert "The run has not ended" in output_of_audit(tmp_path, events)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read .*events\.jsonl"):
        audit(tmp_path / "events.jsonl", Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([start(), *(update(v, b) for v, b in enumerate((0, 1, 2, 2, 3), 1)), end()], "applied more than once: 2"),
        ([start(), update(1, 0, 0, 1, 2, 3), end()], "applied more than once: 0"),
        ([start(), update(1, 0, 1, 2), end()], "the run reported applied 4, its events add up to 3"),
        ([start(), update(1, 0, 1, 2), end(leased=3, applied=3)], "the run reported lost 0, its events add up to 1"),
        ([start(), update(1, 0, 1, 2, attempts=(0, 1, 0))], "batch 1 was applied at attempt 1 but returned 0 times"),
        ([start(), returned(0), update(1, 0)], "batch 0 was applied at attempt 0 but returned 1 times before"),
        ([start(), refused("damaged", 0), update(1, 0)], "batch 0 was applied at attempt 0 but returned 1 times"),
        ([*RESUMED[:7], update(2, 1)], "batch 1 was applied at attempt 0 but returned 1 times before"),
        ([start(), update(1, 0, 1, attempts=(0,))], "update 1 has 2 batches, 1 attempts"),
        ([start(), update(1, 0, 4)], "batches that are not part of the run: 4"),
        ([start(), update(1, -1)], "batches that are not part of the run: -1"),
        ([update(1, 0)], "batches that are not part of the run: 0"),
        ([start(), update(2, 0)], "update 2 where update 1 was expected"),
        ([start(), update(1, 0), update(1, 1)], "update 1 where update 2 was expected"),
        ([start(), update(1, 0), changed(2)], "settings changed at version 2, but the updates end at 1"),
        ([start(), update(1, 0), changed(-1)], "settings changed at version -1, but the updates end at 1"),
        ([start(), update(1, 0), start("resume", 2)], "resumed at version 2, but the updates end at 1"),
        ([start(), update(1, 0), start("resume", -1)], "resumed at version -1, but the updates end at 1"),
    ],
)
def test_contradiction_is_named(tmp_path: Path, events: list[RunEvent], problem: str) -> None:
    with pytest.raises(PsysError, match=r"the batch accounting of .* is wrong") as caught:
        output_of_audit(tmp_path, events)
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", [name for name in vars(BatchAccount(0)) if name != "unfinished"])
def test_total_that_differs_from_the_reported_one_is_named(tmp_path: Path, name: str) -> None:
    totals = {"batches": BATCHES, "applied": BATCHES, "lost": 0, **TOTALS}
    value = totals[name]
    with pytest.raises(PsysError, match=f"the run reported {name} {value + 1}, its events add up to {value}"):
        output_of_audit(tmp_path, [*BEFORE_END, end(**{**totals, name: value + 1})])


class RandomRun:
    """Makes random moves on a real ledger and records the events that a server would write."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.ledger = Ledger(1, batches, 1)
        self.events: list[RunEvent] = []
        self.version = 0
        self.checkpoint = (0, self.ledger.state())
        self.outstanding: list[Lease] = []
        self.accepted: list[Lease] = []
        self.granted: list[Lease] = []
        self.start("start")

    def start(self, event: Any) -> None:
        self.version, state = self.checkpoint
        self.ledger = Ledger(1, self.batches, 1)
        self.ledger.restore(LedgerState.model_validate_json(state.model_dump_json()))
        self.outstanding, self.accepted = [], []
        counts = {str(name): count for name, count in state.counts.items()}
        self.events.append(
            RunStarted(
                event=event,
                store="0a1b",
                version=self.version,
                seconds=0.0,
                batches=self.batches,
                counts=counts,
                attempts=dict(state.attempts),
            )
        )

    def push(self, lease: Lease, finite: bool = True) -> None:
        receipt = self.ledger.accept(lease, finite)
        if receipt is Receipt.ACCEPTED:
            self.accepted.append(lease)
        else:
            self.events.append(PushRefused(receipt=receipt.value, lease=lease, seconds=1.0))

    def move(self, move: str, which: int) -> None:
        def take(leases: list[Lease]) -> Lease:
            return leases.pop(which % len(leases))

        match move:
            case "lease" if not self.ledger.exhausted:
                self.outstanding.append(self.ledger.lease(f"worker{which}", self.version, 0))
                self.granted.append(self.outstanding[-1])
            case "push" if self.outstanding:
                self.push(take(self.outstanding))
            case "push NaN" if self.outstanding:
                self.push(take(self.outstanding), finite=False)
            case "push again" if self.granted:
                if (lease := self.granted[which % len(self.granted)]) not in self.outstanding:
                    self.push(lease)
            case "return" | "give up" if self.outstanding:
                lost, late = [take(self.outstanding)], move == "give up"
                self.ledger.give_up(lost) if late else self.ledger.take_back(lost)
                self.events.append(LeasesReturned(leases=tuple(lost), late=late, seconds=1.0))
            case "update" if self.accepted:
                applied, self.accepted = self.accepted[: 1 + which % 3], self.accepted[1 + which % 3 :]
                for each in applied:
                    self.ledger.apply(each)
                self.version += 1
                attempts = tuple(each.attempt for each in applied)
                self.events.append(update(self.version, *(each.batch for each in applied), attempts=attempts))
            case "checkpoint":
                self.checkpoint = (self.version, self.ledger.state())
            case "resume":
                self.start("resume")

    def finish(self) -> None:
        while not self.ledger.finished:
            for move in ("lease", "push", "update"):
                self.move(move, 0)

    def end(self) -> None:
        self.events.append(runs.end(**vars(self.ledger.account())))


MOVES = ["lease", "lease", "lease", "push", "push", "update", "update"]
MOVES += ["push NaN", "push again", "return", "give up", "checkpoint", "resume"]


@given(
    batches=st.integers(1, 12),
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 9)), max_size=80),
    finish=st.booleans(),
)
def test_accounting_of_any_run_equals_its_ledger(batches: int, moves: list[tuple[str, int]], finish: bool) -> None:
    run = RandomRun(batches)
    for move in moves:
        run.move(*move)
    if finish:
        run.finish()
    run.end()
    recomputed = RecomputedAccount()
    for event in run.events:
        recomputed.add(event)
    recomputed.check()
    assert recomputed.problems == []
    assert recomputed.resumes == sum(isinstance(e, RunStarted) and e.event == "resume" for e in run.events)
    if finish:
        assert recomputed.account() == run.ledger.account()
