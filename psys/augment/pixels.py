"""An image and its mask as one tensor: a pixel is a 32-bit word of red, green, blue and the mask, and moves as one."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

_SHIFTS = (0, 8, 16, 24) if sys.byteorder == "little" else (24, 16, 8, 0)


def pack(images: Tensor, masks: Tensor) -> Tensor:
    """Words (B, H, W) int32 of `images` (B, H, W, 3) uint8 and `masks` (B, H, W) bool; 0 is black background."""
    return _interleave(*images.unbind(3), masks.to(torch.uint8) * 255).view(torch.int32).squeeze(3)


def word_of(colour: Sequence[int]) -> int:
    """The word of a background pixel of this red, green and blue, 0 to 255."""
    return int.from_bytes(bytes([*colour, 0]), sys.byteorder, signed=True)


def colours_of(words: Tensor) -> Tensor:
    """The images (B, H, W, 3) uint8 in words."""
    return _interleave(*_bytes_of(words).unbind(3)[:3])


def masks_of(words: Tensor) -> Tensor:
    """The masks (B, H, W) bool in words; one that was interpolated holds where it is at least half."""
    return _bytes_of(words)[..., 3] > 127


def to_planes(words: Tensor) -> Tensor:
    """Red, green, blue and mask apart, to compute with: (B, 4, H, W) float32, 0 to 255, channels_last."""
    return _bytes_of(words).float().permute(0, 3, 1, 2)


def from_planes(planes: Tensor) -> Tensor:
    """Words (B, H, W) int32 of planes (B, 4 or 3, H, W) float32, 0 to 255, rounded; three are without mask."""
    first, *others = planes.round().int().unbind(1)
    words = first << _SHIFTS[0]
    for values, shift in zip(others, _SHIFTS[1:], strict=False):
        words.add_(values, alpha=1 << shift)
    return words


def both(first: Tensor, second: Tensor) -> Tensor:
    """`first & second` of bools, three times as fast where they broadcast: torch does not vectorise that for bools."""
    return (first.view(torch.uint8) & second.view(torch.uint8)).view(torch.bool)


def either(first: Tensor, second: Tensor) -> Tensor:
    """`first | second` of bools, see `both`."""
    return (first.view(torch.uint8) | second.view(torch.uint8)).view(torch.bool)


def unpack_masks(packed: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Masks (B, H, W) bool from the store's bits, (B, ceil(H * W / 8)) uint8 in the order of `np.packbits`."""
    # A table of the eight bools of every byte: one look-up of eight bytes instead of eight shifts.
    places = torch.arange(7, -1, -1, device=packed.device)
    table = ((torch.arange(256, device=packed.device)[:, None] >> places) & 1).bool().view(torch.int64).flatten()
    bits = table.index_select(0, packed.flatten().int()).view(torch.bool)
    height, width = image_size
    return bits.view(len(packed), -1)[:, : height * width].reshape(-1, height, width)


def _interleave(*planes: Tensor) -> Tensor:
    """(B, H, W, C) of C planes (B, H, W): one long loop for each, where a loop over each pixel's bytes takes longer."""
    return torch.stack(planes, dim=3)


def _bytes_of(words: Tensor) -> Tensor:
    return words[..., None].view(torch.uint8)  # (B, H, W, 4), no copy
