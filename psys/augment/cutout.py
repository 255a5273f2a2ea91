"""Cutout: hide one square of each image, so that the network must use the rest."""

import torch
from torch import Tensor


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each image with one square of `size` x `size` pixels set to 0; its centre is uniform over all pixels.

    The square is clipped at the border, so it is often smaller; an even size reaches `size // 2` pixels either way.
    `images` is (B, C, H, W), normalised: 0 is the mean colour. The generator lives on its device.
    DeVries & Taylor, arXiv:1708.04552.
    """
    batch, _, height, width = images.shape
    device = images.device

    def inside(side: int) -> Tensor:  # (B, side)
        centre = torch.randint(side, (batch, 1), device=device, generator=generator)
        offset = torch.arange(side, device=device) - (centre - size // 2)
        return (offset >= 0) & (offset < size)

    hole = inside(height)[:, None, :, None] & inside(width)[:, None, None, :]
    return images * ~hole
