"""Cutout: hide one square of each image, so that the network must use the other pixels."""

import torch
from torch import Tensor

from psys.augment.draws import draw
from psys.augment.pixels import logical_and


def rectangles(image_size: tuple[int, int], sides: Tensor, generator: torch.Generator) -> Tensor:
    """One rectangle in each of N images, True inside: (N, H, W) bool; its centre is uniform over all pixels.

    sides: (2, N) int64, heights and widths in pixels; a side of 0 gives no rectangle. A rectangle is clipped at the
    image's border. `sides`, the generator and the result are on the same device.
    """

    def inside(length: int, side: Tensor) -> Tensor:  # (N, length)
        centre = torch.randint(length, (len(side), 1), device=side.device, generator=generator)
        return _hidden(length, centre, side[:, None])

    height, width = image_size
    return logical_and(inside(height, sides[0])[:, :, None], inside(width, sides[1])[:, None, :])


def holes(wanted: Tensor, image_size: tuple[int, int], size: int, generator: torch.Generator) -> Tensor:
    """Cutout's squares of `size` x `size` pixels, True inside: (N, H, W) bool. DeVries & Taylor, arXiv:1708.04552.

    wanted: (N,) bool, the images that get a square.
    """
    return rectangles(image_size, (wanted * size).expand(2, -1), generator)


def sparing_holes(wanted: Tensor, masks: Tensor, size: int, most: float, generator: torch.Generator) -> Tensor:
    """Squares as in `holes` that hide at most the share `most` (0 to 1) of each image's foreground.

    masks: (N, H, W) bool. The centre is uniform over the pixels that satisfy this limit; an image without such a pixel
    gets no square.
    """
    height, width = masks.shape[1:]
    rows, columns = (
        _hidden(length, torch.arange(length, device=masks.device)[:, None], size) for length in (height, width)
    )
    foreground = masks.float()
    erased = rows.float() @ foreground @ columns.float().T  # (N, H, W): foreground in a square centred at each pixel
    allowed = erased <= most * foreground.sum(dim=(1, 2), keepdim=True)
    centre, found = draw(allowed.flatten(1), 1, generator)
    chosen = rows[centre // width] & (found & wanted)[:, None]
    return logical_and(chosen[:, :, None], columns[centre % width][:, None, :])


def _hidden(length: int, centre: Tensor, side: Tensor | int) -> Tensor:
    """The pixels of a row or column that a hole centred at `centre` (N, 1) hides: (N, length) bool."""
    offset = torch.arange(length, device=centre.device) - (centre - side // 2)
    return (offset >= 0) & (offset < side)
