"""Batch augmentation: a batch holds several views of every sample, each transformed independently."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from psys.augment.cutout import holes
from psys.augment.foreground import ForegroundConfig, apply_modes
from psys.augment.geometry import flip_shift, rotate
from psys.augment.pixels import colours_of, from_planes, pack, to_planes, unpack_masks, word_of
from psys.config import Config

Colour = tuple[float, float, float]


class AugmentConfig(Config):
    """How training images are transformed; shares are probabilities, sampled independently for every view."""

    views: int = Field(default=1, ge=1)
    """Views M of every sample in a batch, each transformed independently; 1 is no batch augmentation."""
    flip: bool = True
    """Mirror half of the views left-right."""
    shift: int = Field(default=4, ge=0)
    """Largest shift along rows and columns, pixels; uncovered pixels are black."""
    rotate_degrees: float = Field(default=0.0, ge=0, le=180)
    """Largest rotation in either direction, degrees; 0 is off. Uncovered pixels are black."""
    cutout_size: int = Field(default=0, ge=0)
    """Side of cutout's square, filled with the mean colour, pixels; 0 is off. Its paper uses 16 for CIFAR-10."""
    cutout_share: float = Field(default=1.0, ge=0, le=1)
    """Share of the views with cutout, 0 to 1, among the views without a foreground mode."""
    foreground: ForegroundConfig = ForegroundConfig()

    @model_validator(mode="after")
    def _keep_needs_a_cutout_size(self) -> Self:
        if self.foreground.keep and not self.cutout_size:
            raise ValueError("'foreground.keep' is a kind of cutout: 'cutout_size' must be above 0")
        return self


def augment(
    images: Tensor,
    labels: Tensor,
    packed_masks: Tensor,
    usable: Tensor,
    config: AugmentConfig,
    classes: int,
    mean: Colour,
    std: Colour,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """M independently transformed views of each sample and their labels; sample i has rows i, B + i, 2B + i, ...

    images: (B, H, W, 3) uint8; labels: (B,) int64; packed_masks: (B, ceil(H * W / 8)) uint8; usable: (B,) bool; all on
    the generator's device. mean, std: of each channel, for pixel values scaled to 0..1. Returns views (M * B, 3, H, W)
    float32, channels_last, and labels (M * B,) int64, or (M * B, classes) float32 probabilities if `mix` is used. The
    same generator state gives the same views. Images and masks are first flipped, shifted and rotated; then the
    foreground modes are applied, and cutout is applied to views without a foreground mode. Hoffer et al., CVPR 2020.
    """
    image_size = (images.shape[1], images.shape[2])
    originals = pack(images, unpack_masks(packed_masks, image_size))
    moved = originals.repeat(config.views, 1, 1)
    if config.flip or config.shift:
        moved = flip_shift(moved, config.flip, config.shift, generator)
    if config.rotate_degrees:
        planes = to_planes(moved)[:, : 4 if config.foreground.shares else 3]
        moved = from_planes(rotate(planes, config.rotate_degrees, generator))
    mean_word = word_of([round(255 * value) for value in mean])
    views = apply_modes(
        originals, moved, labels, usable, mean_word, config.foreground, config.cutout_size, classes, generator
    )
    words = views.words
    if config.cutout_size:
        drawn = torch.rand(len(moved), device=images.device, generator=generator)
        is_cut = views.is_plain & (drawn < config.cutout_share)
        hidden = holes(is_cut, image_size, config.cutout_size, generator)
        words = torch.where(hidden, mean_word, words)
    return normalise(colours_of(words), mean, std), views.labels


def normalise(images: Tensor, mean: Colour, std: Colour) -> Tensor:
    """Convert pixels to the network's input: (x / 255 - mean) / std for each channel.

    (B, H, W, 3) uint8 -> (B, 3, H, W) float32, channels_last: the input's memory order, so nothing is transposed.
    """
    # One vector operation for a whole row: torch is slow with an innermost dimension of three channels.
    centre, spread = torch.tensor((mean, std), device=images.device).repeat(1, images.shape[2])
    rows = torch.addcmul(-centre / spread, images.flatten(2), 1 / (255 * spread))
    return rows.view(images.shape).permute(0, 3, 1, 2)
