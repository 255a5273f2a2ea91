"""The division of the training images into batches, also with a batch size that changed."""

import hypothesis.strategies as st
from hypothesis import given

from psys.data.batch_plan import BatchPlan

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@given(samples=st.integers(1, 30), sizes=SIZES, lengths=st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_every_epoch_has_every_position_once(samples: int, sizes: list[int], lengths: list[int]) -> None:
    ends = [sum(lengths[: number + 1]) for number in range(len(sizes))]
    plan = BatchPlan(samples, sizes[-1], list(zip(sizes, ends, strict=True))[:-1])
    positions: list[list[int]] = [[] for _ in range(ends[-1])]
    for batch in range(plan.batches(ends[-1])):
        epoch, first, last = plan.place(batch)
        assert plan.size(batch) == last - first > 0
        positions[epoch] += range(first, last)
    assert positions == [list(range(samples))] * ends[-1]


def test_epochs_of_batches_applied() -> None:
    plan = BatchPlan(10, 2, [(5, 3)])
    assert [plan.batches(epochs) for epochs in (0, 1, 3, 4)] == [0, 2, 6, 11]
    assert [plan.part_of(batch) for batch in (0, 5, 6, 100)] == [0, 0, 1, 1]
    assert plan.epochs([6, 1]) == 3.2
