"""Batch augmentation: several views of every sample, each with its own transforms, stand in the same batch."""

import torch
from pydantic import Field
from torch import Tensor

from psys.augment.cutout import cutout
from psys.augment.foreground import foreground, unpack_masks
from psys.augment.geometry import flip_shift, rotate
from psys.config import Config

Colour = tuple[float, float, float]


class AugmentConfig(Config):
    """How training images are varied; shares are probabilities, drawn anew for every view."""

    views: int = Field(default=1, ge=1)
    """Views M of every sample in a batch, each transformed independently; 1 is no batch augmentation."""
    flip: bool = True
    """Mirror half of the views left-right."""
    shift: int = Field(default=4, ge=0)
    """Largest shift along rows and columns, pixels; what moves in is black."""
    rotate_degrees: float = Field(default=0.0, ge=0, le=180)
    """Largest rotation either way, degrees; 0 is off."""
    cutout_size: int = Field(default=0, ge=0)
    """Side of the square hole of cutout, pixels; 0 is off. Its paper has 16 for CIFAR-10."""
    cutout_share: float = Field(default=1.0, ge=0, le=1)
    """Share of the views with a hole, 0 to 1, among those that are not foreground images."""
    foreground_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the views with the foreground alone, on black, 0 to 1; an image with a degenerate mask stays whole."""


def augment(
    images: Tensor,
    labels: Tensor,
    packed_masks: Tensor,
    usable: Tensor,
    config: AugmentConfig,
    mean: Colour,
    std: Colour,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """M independently transformed views of each sample, and the labels repeated: sample i is at i, B + i, 2B + i, ...

    `images` (B, H, W, 3) uint8, `labels` (B,), `packed_masks` (B, ceil(H * W / 8)) uint8 and `usable` (B,) bool live on
    the generator's device; `mean` and `std` in units of [0, 1]. Returns views (M * B, 3, H, W) float32, channels_last,
    and labels (M * B,). The same generator state gives the same views. Hoffer et al., CVPR 2020.
    """
    count = config.views * len(images)

    def chosen(share: float) -> Tensor:  # (M * B,) bool
        return torch.rand(count, device=images.device, generator=generator) < share

    views = images.repeat(config.views, 1, 1, 1)
    is_foreground = chosen(config.foreground_share) & usable.repeat(config.views)
    if config.foreground_share > 0:
        masks = unpack_masks(packed_masks, (images.shape[1], images.shape[2]))
        # Masked before it moves, an image takes its mask along, and what moves in is black like the background.
        views = foreground(views, masks.repeat(config.views, 1, 1), is_foreground)
    if config.flip or config.shift:
        views = flip_shift(views, config.flip, config.shift, generator)
    normalised = normalise(views, mean, std)
    if config.rotate_degrees:
        normalised = rotate(normalised, config.rotate_degrees, generator)
    if config.cutout_size:
        is_cut = chosen(config.cutout_share) & ~is_foreground
        normalised = torch.where(
            is_cut[:, None, None, None], cutout(normalised, config.cutout_size, generator), normalised
        )
    return normalised.contiguous(memory_format=torch.channels_last), labels.repeat(config.views)


def normalise(images: Tensor, mean: Colour, std: Colour) -> Tensor:
    """The network's input from pixels: (x / 255 - mean) / std per channel, without augmentation as evaluation needs it.

    (B, H, W, 3) uint8 -> (B, 3, H, W) float32, channels_last (the bytes already lie that way: no transposing copy).
    """
    centre = torch.tensor(mean, device=images.device).view(3, 1, 1)
    spread = torch.tensor(std, device=images.device).view(3, 1, 1)
    return images.permute(0, 3, 1, 2).div(255).sub_(centre).div_(spread)
