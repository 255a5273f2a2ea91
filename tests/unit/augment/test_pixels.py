import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psys.augment.pixels import colours_of, from_planes, masks_of, pack, to_planes, unpack_masks


def test_pack_and_planes_are_inverted(images: Tensor) -> None:
    masks = images.amax(dim=3) > 120
    words = pack(images, masks)
    assert torch.equal(colours_of(words), images)
    assert torch.equal(masks_of(words), masks)
    planes = to_planes(words)
    assert torch.equal(planes, torch.cat([images, masks[..., None] * 255], dim=3).permute(0, 3, 1, 2).float())
    assert torch.equal(from_planes(planes + 0.4), words)
    assert torch.equal(from_planes(planes[:, :3]), pack(images, torch.zeros_like(masks)))


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 13), st.integers(1, 13), st.integers(0, 2**32 - 1))
def test_unpack_masks_inverts_packbits(batch: int, height: int, width: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((batch, height, width)) < 0.5
    packed = torch.from_numpy(np.packbits(masks.reshape(batch, -1), axis=1))
    assert torch.equal(unpack_masks(packed, (height, width)), torch.from_numpy(masks))
