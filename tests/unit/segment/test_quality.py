import numpy as np
import pytest
from pydantic import ValidationError

from psys.segment.quality import GateConfig, foreground_share, is_usable


def test_the_share_is_counted_per_mask():
    masks = np.zeros((3, 10, 10), np.bool_)
    masks[1, :2] = True
    masks[2] = True

    np.testing.assert_array_equal(foreground_share(masks), np.array([0, 0.2, 1], np.float32))


def test_the_gate_shuts_below_two_and_above_ninety_five_percent():
    shares = np.array([0, 0.0199, 0.02, 0.5, 0.9499, 0.951, 1], np.float32)

    assert is_usable(shares, GateConfig()).tolist() == [False, False, True, True, True, False, False]


def test_the_bounds_are_settings():
    shares = np.array([0.1, 0.5], np.float32)

    assert is_usable(shares, GateConfig(min_share=0.2)).tolist() == [False, True]
    with pytest.raises(ValidationError):
        GateConfig(min_share=2)
