import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psys.ps.ledger import Ledger, Receipt, batch_seed, samples_of


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
