"""Label-preserving geometric transforms of a batch: horizontal flip, shift, rotation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def flip_shift(images: Tensor, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Mirror each image left-right with probability 1/2 (if `flip`) and shift it by up to `shift` pixels.

    images: (B, H, W, C) or (B, H, W) of any dtype, on the generator's device. Shifts along rows and columns are
    integers, uniform in [-shift, shift]; uncovered pixels are 0. The same generator state gives the same movement.
    """
    batch, height, width = images.shape[:3]
    device = images.device

    def draw(count: int) -> Tensor:
        return torch.randint(count, (batch, 1), device=device, generator=generator)

    rows = torch.arange(height, device=device) + draw(2 * shift + 1)  # (B, H), indices into the padded image
    columns = torch.arange(width, device=device) + draw(2 * shift + 1)  # (B, W)
    if flip:
        columns = torch.where(draw(2) == 1, width - 1 + 2 * shift - columns, columns)
    padding = (0, 0) * (images.ndim - 3) + (shift, shift, shift, shift)
    padded = F.pad(images, padding)
    # One index per pixel into the flattened batch: faster than indexing by image, row and column.
    padded_height, padded_width = height + 2 * shift, width + 2 * shift
    first = torch.arange(batch, device=device)[:, None] * padded_height
    pixels = ((first + rows) * padded_width)[:, :, None] + columns[:, None, :]  # (B, H, W)
    return padded.flatten(0, 2).index_select(0, pixels.flatten()).view(images.shape)


def rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Rotate each image about its centre by an angle uniform in [-degrees, degrees], with bilinear interpolation.

    images: (B, C, H, W) float32, on the generator's device. Uncovered pixels are 0.
    """
    batch, _, height, width = images.shape
    device = images.device
    angle = (torch.rand(batch, device=device, generator=generator) * 2 - 1) * math.radians(degrees)
    # A pixel's source is the sum of one vector for its column and one for its row: two short lists of points per image.
    # affine_grid would multiply a matrix for every pixel and take longer than the sampling.
    rows, columns = (torch.arange(length, device=device) - (length - 1) / 2 for length in (height, width))
    across, down = 2 / width, 2 / height  # grid_sample has coordinates from -1 to 1 along both sides
    column_step = torch.stack([angle.cos() * across, angle.sin() * down], dim=1)
    row_step = torch.stack([-angle.sin() * across, angle.cos() * down], dim=1)
    grid = column_step[:, :, None, None] * columns + row_step[:, :, None, None] * rows[:, None]  # (B, 2, H, W)
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
