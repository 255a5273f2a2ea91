"""The order of samples and the seeds of random draws."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from psys.compute.order import batch_seed, samples_of
from psys.data.batch_plan import BatchPlan


@given(samples=st.integers(1, 200), batch_size=st.integers(1, 50), epoch=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_epoch_has_every_sample_once(samples: int, batch_size: int, epoch: int, seed: int) -> None:
    plan = BatchPlan(samples, batch_size)
    batches = range(plan.batches(epoch), plan.batches(epoch + 1))
    drawn = [samples_of(batch, plan, seed) for batch in batches]
    assert [len(indices) for indices in drawn] == [plan.size(batch) for batch in batches]
    assert sorted(torch.cat(drawn).tolist()) == list(range(samples))


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [samples_of(batch, BatchPlan(1000, 1000), seed).tolist() for batch, seed in [(0, 0), (1, 0), (0, 1)]]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[0] == samples_of(0, BatchPlan(1000, 1000), 0).tolist()


def test_streams_of_a_position_have_different_seeds() -> None:
    seeds = {batch_seed(seed, position, stream) for seed in range(5) for position in range(50) for stream in range(2)}
    assert len(seeds) == 5 * 50 * 2
