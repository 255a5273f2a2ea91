import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psys.data.holdout import holdout
from psys.errors import PsysError


@given(per_class=st.lists(st.integers(5, 40), min_size=1, max_size=6), share=st.floats(0, 0.8), seed=st.integers(0, 99))
def test_share_of_every_class_is_held_out_without_overlap(per_class: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(per_class)), per_class))
    training, validation = holdout(labels, share, seed)
    assert sorted([*training, *validation]) == list(range(len(labels)))
    held = np.bincount(labels[validation], minlength=len(per_class))
    assert held.tolist() == [round(share * count) for count in per_class]
    again = holdout(labels, share, seed)
    assert np.array_equal(validation, again[1])


def test_holdout_depends_on_seed_and_share() -> None:
    labels = np.repeat(np.arange(4), 50)
    assert not np.array_equal(holdout(labels, 0.2, 0)[1], holdout(labels, 0.2, 1)[1])
    assert len(holdout(labels, 0.0, 0)[1]) == 0


def test_holding_out_all_images_is_rejected() -> None:
    with pytest.raises(PsysError, match="leaves none to train on"):
        holdout(np.repeat(np.arange(4), 5), 0.99, 0)
