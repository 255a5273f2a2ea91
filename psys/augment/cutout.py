"""Cutout: hide one square of each image, so that the network must use the rest."""

import torch
from torch import Tensor

from psys.augment.draws import draw
from psys.augment.pixels import both


def rectangles(image_size: tuple[int, int], sides: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle in each of N images, True inside: (N, H, W) bool; its centre is uniform over all pixels.

    `sides` (2, N) int64: height and width in pixels, 0 for none. It is clipped at the border, so it is often smaller;
    an even side reaches half of it either way. `sides` and the generator live on one device, and so does the result.
    """

    def inside(length: int, side: Tensor) -> Tensor:  # (N, length)
        centre = torch.randint(length, (len(side), 1), device=side.device, generator=generator)
        return _hidden(length, centre, side[:, None])

    height, width = image_size
    return both(inside(height, sides[0])[:, :, None], inside(width, sides[1])[:, None, :])


def holes(wanted: Tensor, image_size: tuple[int, int], size: int, generator: torch.Generator) -> Tensor:
    """Squares of `size` x `size` pixels to hide in each of N images that is `wanted` (N,) bool: (N, H, W) bool.

    DeVries & Taylor, arXiv:1708.04552.
    """
    return rectangles(image_size, (wanted * size).expand(2, -1), generator)


def sparing_holes(wanted: Tensor, masks: Tensor, size: int, most: float, generator: torch.Generator) -> Tensor:
    """Squares like those of `holes`, but hiding at most the share `most` (0 to 1) of each image's foreground.

    `masks` (N, H, W) bool; the centre is uniform over the pixels that allow it; where none does there is no hole.
    """
    height, width = masks.shape[1:]
    rows, columns = (
        _hidden(length, torch.arange(length, device=masks.device)[:, None], size) for length in (height, width)
    )
    foreground = masks.float()
    erased = rows.float() @ foreground @ columns.float().T  # (N, H, W): foreground pixels in the hole about each pixel
    allowed = erased <= most * foreground.sum(dim=(1, 2), keepdim=True)
    centre, found = draw(allowed.flatten(1), 1, generator)
    chosen = rows[centre // width] & (found & wanted)[:, None]
    return both(chosen[:, :, None], columns[centre % width][:, None, :])


def _hidden(length: int, centre: Tensor, side: Tensor | int) -> Tensor:
    """Which pixels of a line a hole about `centre` (N, 1) hides: (N, length) bool."""
    offset = torch.arange(length, device=centre.device) - (centre - side // 2)
    return (offset >= 0) & (offset < side)
