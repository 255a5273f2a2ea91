import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psys.augment.foreground import foreground, unpack_masks


def test_background_is_black_and_foreground_untouched(images: Tensor) -> None:
    masks = images.amax(dim=3) > 120
    usable = torch.arange(len(images)) % 3 > 0
    result = foreground(images, masks, usable)
    assert result.dtype == torch.uint8
    cut = result[usable]
    assert torch.equal(cut[masks[usable]], images[usable][masks[usable]])
    assert int(cut[~masks[usable]].sum()) == 0
    assert torch.equal(result[~usable], images[~usable])


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 13), st.integers(1, 13), st.integers(0, 2**32 - 1))
def test_unpacking_reverts_packbits(batch: int, height: int, width: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((batch, height, width)) < 0.5
    packed = torch.from_numpy(np.packbits(masks.reshape(batch, -1), axis=1))
    assert torch.equal(unpack_masks(packed, (height, width)), torch.from_numpy(masks))
