"""CutMix whose labels are weighted by the visible foreground instead of the rectangle's area."""

import torch
from torch import Tensor

from psys.augment.cutout import rectangles


def mixing_rectangles(wanted: Tensor, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """CutMix's rectangle in each of N images, True inside: (N, H, W) bool. Yun et al., ICCV 2019.

    wanted: (N,) bool, the images that get a rectangle. Before clipping a rectangle has the image's aspect ratio and a
    share of its area uniform in [0, 1].
    """
    scale = torch.rand(len(wanted), device=wanted.device, generator=generator).sqrt() * wanted
    sides = torch.stack([scale * length for length in image_size]).round().long()
    return rectangles(image_size, sides, generator)


def visible_share(masks: Tensor, other_masks: Tensor, rectangles: Tensor, by_mask: Tensor) -> Tensor:
    """Weight of the other image's label: (V,) float32, 0 to 1.

    masks, other_masks, rectangles: (V, H, W) bool; by_mask: (V,) bool. The weight is the other image's share of the
    visible foreground pixels: its own inside the rectangle and the first image's outside. Where `by_mask` is False or
    no foreground is visible, the weight is the rectangle's share of the area.
    """
    own, other, area = (
        shown.flatten(1).sum(dim=1) for shown in (masks & ~rectangles, other_masks & rectangles, rectangles)
    )
    visible = own + other
    return torch.where(by_mask & (visible > 0), other / visible.clamp_min(1), area / masks[0].numel())
