from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psys.ps.ledger import Ledger, LedgerState, Receipt
from psys.ps.messages import Lease

MOVES = ["lease", "lease", "accept", "apply", "take back", "give up", "damage", "push again"]


def test_lease_taken_back_is_reissued_first_under_another_attempt() -> None:
    ledger = Ledger(1, 30, 10)
    first, second = ledger.lease("a", 0, slot=0), ledger.lease("b", 0, slot=0)
    assert ledger.outstanding("a") == [first]
    ledger.take_back([first])
    assert ledger.outstanding("a") == []
    assert ledger.accept(first) is Receipt.EXPIRED
    again = ledger.lease("b", 4, slot=1)
    assert (again.batch, again.attempt, again.version, again.slot) == (first.batch, 1, 4, 1)
    assert ledger.outstanding("b") == [second, again]
    assert ledger.accept(first) is Receipt.EXPIRED
    assert ledger.accept(again) is Receipt.ACCEPTED
    assert ledger.accept(first) is Receipt.DUPLICATE
    assert ledger.accept(again) is Receipt.DUPLICATE
    assert ledger.accept(second) is Receipt.ACCEPTED
    ledger.apply(again)
    ledger.apply(second)
    account = ledger.account()
    assert (account.leased, account.applied, account.reissued) == (3, 2, 1)
    assert (account.expired, account.duplicates, account.unfinished, account.lost) == (2, 2, 1, 0)


def test_nothing_is_leased_beyond_the_last_batch() -> None:
    ledger = Ledger(1, 10, 10)
    ledger.lease("a", 0, slot=0)
    assert ledger.exhausted
    with pytest.raises(LookupError):
        ledger.lease("b", 0, slot=0)


@pytest.mark.parametrize("wrong", [(0, 10, 10), (1, 0, 10), (1, 10, 0)])
def test_run_without_batches_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=">= 1"):
        Ledger(*wrong)


def test_batch_of_a_gradient_that_is_not_finite_is_due_again() -> None:
    ledger = Ledger(1, 30, 10)
    lease, other = ledger.lease("a", 0, slot=0), ledger.lease("b", 0, slot=0)
    assert ledger.accept(lease, finite=False) is Receipt.DAMAGED
    assert ledger.outstanding("a") == []
    assert ledger.accept(lease) is Receipt.EXPIRED
    again = ledger.lease("a", 1, slot=0)
    assert (again.batch, again.attempt) == (lease.batch, 1)
    assert ledger.accept(again) is Receipt.ACCEPTED
    assert ledger.accept(again, finite=False) is Receipt.DUPLICATE
    ledger.take_back([other])
    assert ledger.accept(other, finite=False) is Receipt.EXPIRED
    account = ledger.account()
    assert (account.damaged, account.duplicates, account.expired, account.lost) == (1, 1, 2, 0)


def test_lease_given_up_is_late_whatever_becomes_of_its_batch() -> None:
    ledger = Ledger(1, 30, 10)
    slow, other = ledger.lease("a", 0, slot=0), ledger.lease("a", 0, slot=1)
    ledger.give_up([slow])
    assert ledger.outstanding("a") == [other]
    again = ledger.lease("b", 1, slot=0)
    assert (again.batch, again.attempt) == (slow.batch, 1)
    assert ledger.accept(slow) is Receipt.LATE
    assert ledger.accept(again) is Receipt.ACCEPTED
    assert ledger.accept(slow, finite=False) is Receipt.LATE  # of a repeated call, whose first answer was lost
    ledger.give_up([other])
    assert [ledger.accept(slow), ledger.accept(other)] == [Receipt.LATE] * 2
    account = ledger.account()
    assert (account.late, account.duplicates, account.expired, account.reissued, account.lost) == (4, 0, 0, 1, 0)


class History:
    """A ledger, and what happened to it."""

    def __init__(self, epochs: int, samples: int, batch_size: int) -> None:
        self.ledger = Ledger(epochs, samples, batch_size)
        self.leased: list[Lease] = []  # all that ever were
        self.out: list[Lease] = []
        self.accepted: list[Lease] = []
        self.applied: set[int] = set()

    def move(self, what: str, which: int) -> None:
        ledger, out = self.ledger, self.out
        match what:
            case "lease" if not ledger.exhausted:
                self.out.append(ledger.lease(f"worker{which % 3}", which, slot=0))
                self.leased.append(self.out[-1])
            case "accept" if out:
                self.accepted.append(out.pop(which % len(out)))
                assert ledger.accept(self.accepted[-1]) is Receipt.ACCEPTED
            case "apply" if self.accepted:
                lease = self.accepted.pop(which % len(self.accepted))
                ledger.apply(lease)
                self.applied.add(lease.batch)
            case "take back" if out:
                ledger.take_back([out.pop(which % len(out))])
            case "give up" if out:
                ledger.give_up([lease := out.pop(which % len(out))])
                assert [ledger.accept(lease), ledger.accept(lease)] == [Receipt.LATE] * 2
            case "damage" if out:
                assert ledger.accept(out.pop(which % len(out)), finite=False) is Receipt.DAMAGED
            case "push again" if self.leased:
                lease = self.leased[which % len(self.leased)]
                if lease not in out:
                    assert ledger.accept(lease) in (Receipt.DUPLICATE, Receipt.EXPIRED, Receipt.LATE)

    def attempt_due(self, batch: int) -> int:
        """Attempt of the next lease: no attempt of a batch is used twice."""
        return sum(lease.batch == batch for lease in self.leased)


def restored(state: LedgerState, epochs: int, samples: int, batch_size: int) -> Ledger:
    """A new ledger from the JSON of a checkpoint."""
    ledger = Ledger(epochs, samples, batch_size)
    read = LedgerState.model_validate_json(state.model_dump_json())
    assert read == state
    ledger.restore(read)
    return ledger


def finish(ledger: Ledger) -> list[Lease]:
    """Lease and apply all batches that are due; returns the leases in order."""
    leases = []
    while not ledger.exhausted:
        leases.append(ledger.lease("z", 0, slot=0))
        assert ledger.accept(leases[-1]) is Receipt.ACCEPTED
        ledger.apply(leases[-1])
    return leases


@given(
    run=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 4)),
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 99)), max_size=80),
)
def test_restored_ledger_leases_exactly_what_was_not_applied(
    run: tuple[int, int, int], moves: list[tuple[str, int]]
) -> None:
    history = History(*run)
    for move in moves:
        history.move(*move)
    state, before = history.ledger.state(), history.ledger.account()
    assert before.lost == 0
    ledger = restored(state, *run)
    assert ledger.state() == state  # however often it is resumed before the first update
    assert ledger.account() == before
    assert ledger.finished == history.ledger.finished
    assert ledger.epochs_done == history.ledger.epochs_done
    due = [batch for batch in range(ledger.batches) if batch not in history.applied]
    expected = [(batch, history.attempt_due(batch)) for batch in due]
    assert [(lease.batch, lease.attempt) for lease in finish(ledger)] == expected
    account = ledger.account()
    assert (account.applied, account.unfinished, account.lost) == (ledger.batches, 0, 0)
    assert account.leased == before.leased + len(due) == ledger.batches + account.reissued
    refused = [(each.duplicates, each.expired, each.damaged, each.late) for each in (before, account)]
    assert refused[0] == refused[1]


def test_leases_from_before_a_restart_are_expired() -> None:
    ledger = Ledger(1, 30, 10)
    pushed, held = ledger.lease("a", 0, slot=0), ledger.lease("a", 0, slot=1)
    ledger.accept(pushed)
    resumed = restored(ledger.state(), 1, 30, 10)
    assert resumed.outstanding("a") == []
    assert [resumed.accept(lease) for lease in (pushed, held)] == [Receipt.EXPIRED] * 2


SOUND: dict[str, Any] = {
    "applied": [[1, 3], [4, 6]],
    "fresh": 8,
    "attempts": {0: 1, 3: 2, 6: 1, 7: 1},
    "counts": {"leased": 9, "reissued": 1, "duplicates": 0, "expired": 0, "damaged": 0, "late": 2},
}


@pytest.mark.parametrize(
    "forged",
    [
        {"applied": [[1, 3], [3, 6]]},  # a ledger would have written one range
        {"applied": [[4, 6], [1, 3]]},
        {"applied": [[1, 5], [4, 6]]},
        {"applied": [[3, 1], [4, 6]]},
        {"applied": [[2, 2], [4, 6]]},
        {"applied": [[-2, 3], [4, 6]]},
        {"applied": [[-(10**12), 3], [4, 6]]},  # would need that many bytes
        {"applied": [[1, 3], [4, 9]]},
        {"applied": [[1, 3, 4], [5, 6]]},
        {"applied": [[1, 2]]},
        {"fresh": -1},
        {"fresh": 9},
        {"fresh": 11},
        {"fresh": 10**12},
        {"attempts": {0: 1, 3: 2, 6: 1}},
        {"attempts": {0: 1, 3: 2, 6: 1, 7: 1, 8: 1}},
        {"attempts": {0: 1, 2: 2, 6: 1, 7: 1}},
        {"attempts": {0: 0, 3: 2, 6: 1, 7: 1}},  # it was leased, so it has been attempted
        {"attempts": {0: -1, 3: 2, 6: 1, 7: 1}},
        {"attempts": {}},
        {"counts": {**SOUND["counts"], "leased": -1}},
        {"counts": {**SOUND["counts"], "applied": 4}},
        {"counts": {**SOUND["counts"], "leased": "many"}},
        {"fresh": None},
        {"batches": 10},
    ],
)
def test_invalid_state_is_refused(forged: dict[str, Any]) -> None:
    Ledger(1, 10, 1).restore(LedgerState(**SOUND))
    with pytest.raises(ValueError, match=r"ledger|LedgerState"):
        Ledger(1, 10, 1).restore(LedgerState(**{**SOUND, **forged}))


number = st.integers(-3, 12)


@given(
    applied=st.lists(st.tuples(number, number), max_size=3) | st.just(SOUND["applied"]),
    fresh=number | st.just(8),
    attempts=st.dictionaries(number, number) | st.just(SOUND["attempts"]),
)
def test_any_state_is_refused_or_restores_a_ledger_that_finishes(
    applied: list[tuple[int, int]], fresh: int, attempts: dict[int, int]
) -> None:
    ledger = Ledger(1, 10, 1)
    try:
        ledger.restore(LedgerState(applied=tuple(applied), fresh=fresh, attempts=attempts, counts={}))
    except ValueError:
        return
    assert ledger.account().lost == 0
    finish(ledger)
    account = ledger.account()
    assert (account.batches, account.applied, account.unfinished, account.lost) == (10, 10, 0, 0)
