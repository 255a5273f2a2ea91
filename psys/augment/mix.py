"""CutMix whose labels count what is seen of the objects, not how large the rectangle is."""

import torch
from torch import Tensor

from psys.augment.cutout import rectangles


def mixing_rectangles(wanted: Tensor, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Where another image shows through: a rectangle in each of N images that are `wanted` (N,) bool, (N, H, W) bool.

    Its share of the area before it is clipped is uniform in [0, 1], its shape that of the image. Yun et al., ICCV 2019.
    """
    scale = torch.rand(len(wanted), device=wanted.device, generator=generator).sqrt() * wanted
    sides = torch.stack([scale * length for length in image_size]).round().long()
    return rectangles(image_size, sides, generator)


def visible_share(masks: Tensor, other_masks: Tensor, rectangles: Tensor, by_mask: Tensor) -> Tensor:
    """How much the other image's label counts: (V,) float32, 0 to 1.

    The other's share of all foreground pixels that are visible, its own in the rectangle and the first image's outside;
    the rectangle's share of the area where `by_mask` (V,) bool is False or no foreground is visible. The three others
    are (V, H, W) bool.
    """
    own, other, area = (
        shown.flatten(1).sum(dim=1) for shown in (masks & ~rectangles, other_masks & rectangles, rectangles)
    )
    visible = own + other
    return torch.where(by_mask & (visible > 0), other / visible.clamp_min(1), area / masks[0].numel())
