"""Foreground images: the segmented object on black, the piece of the picture that cutout leaves out."""

import torch
from torch import Tensor


def foreground(images: Tensor, masks: Tensor, usable: Tensor) -> Tensor:
    """Each image with the pixels outside its mask black; an image whose mask is not usable stays whole.

    `images` (B, H, W, C) uint8, `masks` (B, H, W) bool with True on the foreground, `usable` (B,) bool.
    """
    return images * (masks | ~usable[:, None, None])[..., None]


def unpack_masks(packed: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Masks (B, H, W) bool from the store's bits, (B, ceil(H * W / 8)) uint8 in the order of `np.packbits`."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    bits = (packed[:, :, None] >> shifts) & 1
    height, width = image_size
    return bits.flatten(1)[:, : height * width].reshape(-1, height, width).bool()
