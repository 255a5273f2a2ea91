from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psys.ps.ledger import Lease, Ledger, LedgerState, Receipt, batch_seed, samples_of

MOVES = ["lease", "lease", "accept", "apply", "take back", "damage", "push again"]


@given(samples=st.integers(1, 200), batch_size=st.integers(1, 50), epoch=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_an_epoch_has_every_sample_once(samples: int, batch_size: int, epoch: int, seed: int) -> None:
    ledger = Ledger(epoch + 1, samples, batch_size)
    batches = range(epoch * ledger.batches_per_epoch, (epoch + 1) * ledger.batches_per_epoch)
    drawn = [samples_of(batch, samples, batch_size, seed) for batch in batches]
    assert [len(indices) for indices in drawn] == [ledger.size(batch) for batch in batches]
    assert sorted(torch.cat(drawn).tolist()) == list(range(samples))


def test_epochs_and_seeds_are_permuted_differently() -> None:
    orders = [samples_of(batch, 1000, 1000, seed).tolist() for batch, seed in [(0, 0), (1, 0), (0, 1)]]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[0] == samples_of(0, 1000, 1000, 0).tolist()


def test_streams_of_one_position_differ() -> None:
    seeds = {batch_seed(seed, position, stream) for seed in range(5) for position in range(50) for stream in range(2)}
    assert len(seeds) == 5 * 50 * 2


def test_a_lease_taken_back_is_issued_first_and_to_another_attempt() -> None:
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
    proof = ledger.proof()
    assert (proof.leased, proof.applied, proof.reissued) == (3, 2, 1)
    assert (proof.expired, proof.duplicates, proof.unfinished, proof.lost) == (2, 2, 1, 0)


def test_nothing_is_leased_beyond_the_last_batch() -> None:
    ledger = Ledger(1, 10, 10)
    ledger.lease("a", 0, slot=0)
    assert ledger.exhausted
    with pytest.raises(LookupError):
        ledger.lease("b", 0, slot=0)


@pytest.mark.parametrize("wrong", [(0, 10, 10), (1, 0, 10), (1, 10, 0)])
def test_an_empty_run_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=">= 1"):
        Ledger(*wrong)


def test_a_gradient_that_is_not_finite_is_damaged_and_its_batch_due_again_at_the_next_attempt() -> None:
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
    proof = ledger.proof()
    assert (proof.damaged, proof.duplicates, proof.expired, proof.lost) == (1, 1, 2, 0)


class Play:
    """A ledger and what was done with it, so that it is known what it must owe."""

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
            case "damage" if out:
                assert ledger.accept(out.pop(which % len(out)), finite=False) is Receipt.DAMAGED
            case "push again" if self.leased:
                lease = self.leased[which % len(self.leased)]
                if lease not in out:
                    assert ledger.accept(lease) in (Receipt.DUPLICATE, Receipt.EXPIRED)

    def attempt_due(self, batch: int) -> int:
        """Of the next lease: whatever was leased, and is not applied, must not come under the same attempt again."""
        return sum(lease.batch == batch for lease in self.leased)


def restored(state: LedgerState, epochs: int, samples: int, batch_size: int) -> Ledger:
    """A new ledger from the JSON of a checkpoint."""
    ledger = Ledger(epochs, samples, batch_size)
    read = LedgerState.model_validate_json(state.model_dump_json())
    assert read == state
    ledger.restore(read)
    return ledger


def finish(ledger: Ledger) -> list[Lease]:
    """Lease and apply all that is due; the leases, in order."""
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
def test_a_restored_ledger_owes_exactly_what_was_not_applied(
    run: tuple[int, int, int], moves: list[tuple[str, int]]
) -> None:
    play = Play(*run)
    for move in moves:
        play.move(*move)
    state, before = play.ledger.state(), play.ledger.proof()
    assert before.lost == 0
    ledger = restored(state, *run)
    assert ledger.state() == state  # however often it is resumed before the first update
    assert ledger.proof() == before
    assert ledger.finished == play.ledger.finished
    assert ledger.epochs_done == play.ledger.epochs_done
    owed = [batch for batch in range(ledger.batches) if batch not in play.applied]
    expected = [(batch, play.attempt_due(batch)) for batch in owed]
    assert [(lease.batch, lease.attempt) for lease in finish(ledger)] == expected
    proof = ledger.proof()
    assert (proof.applied, proof.unfinished, proof.lost) == (ledger.batches, 0, 0)
    assert proof.leased == before.leased + len(owed) == ledger.batches + proof.reissued
    assert (proof.duplicates, proof.expired, proof.damaged) == (before.duplicates, before.expired, before.damaged)


def test_what_was_leased_before_a_restart_is_nothing_afterwards() -> None:
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
    "counts": {"leased": 9, "reissued": 1, "duplicates": 0, "expired": 0, "damaged": 0},
}


@pytest.mark.parametrize(
    "forged",
    [
        {"applied": [[1, 3], [3, 6]]},  # one stretch would have been written
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
def test_a_forged_state_is_refused(forged: dict[str, Any]) -> None:
    Ledger(1, 10, 1).restore(LedgerState(**SOUND))
    with pytest.raises(ValueError, match=r"ledger|LedgerState"):
        Ledger(1, 10, 1).restore(LedgerState(**{**SOUND, **forged}))


number = st.integers(-3, 12)


@given(
    applied=st.lists(st.tuples(number, number), max_size=3) | st.just(SOUND["applied"]),
    fresh=number | st.just(8),
    attempts=st.dictionaries(number, number) | st.just(SOUND["attempts"]),
)
def test_whatever_is_restored_is_refused_or_in_good_order(
    applied: list[tuple[int, int]], fresh: int, attempts: dict[int, int]
) -> None:
    ledger = Ledger(1, 10, 1)
    try:
        ledger.restore(LedgerState(applied=tuple(applied), fresh=fresh, attempts=attempts, counts={}))
    except ValueError:
        return
    assert ledger.proof().lost == 0
    finish(ledger)
    proof = ledger.proof()
    assert (proof.batches, proof.applied, proof.unfinished, proof.lost) == (10, 10, 0, 0)
