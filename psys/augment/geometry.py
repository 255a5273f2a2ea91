"""Label-keeping movements of a batch: horizontal flip, shift, small rotation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def flip_shift(images: Tensor, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Each image mirrored left-right with probability 1/2 (if `flip`) and moved by up to `shift` pixels a side.

    Rows and columns move by whole numbers, uniform in [-shift, shift]; what moves in is 0. `images` is (B, H, W, C) or
    (B, H, W) of any dtype: from the same generator state, images and their masks move alike. The generator lives on
    the device of `images`.
    """
    batch, height, width = images.shape[:3]
    device = images.device

    def draw(count: int) -> Tensor:
        return torch.randint(count, (batch, 1), device=device, generator=generator)

    rows = torch.arange(height, device=device) + draw(2 * shift + 1)  # (B, H), into the padded image
    columns = torch.arange(width, device=device) + draw(2 * shift + 1)  # (B, W)
    if flip:
        columns = torch.where(draw(2) == 1, width - 1 + 2 * shift - columns, columns)
    padding = (0, 0) * (images.ndim - 3) + (shift, shift, shift, shift)
    padded = F.pad(images, padding)
    # One index per pixel into the batch laid out as a list of pixels: faster than indexing by image, row and column.
    padded_height, padded_width = height + 2 * shift, width + 2 * shift
    first = torch.arange(batch, device=device)[:, None] * padded_height
    pixels = ((first + rows) * padded_width)[:, :, None] + columns[:, None, :]  # (B, H, W)
    return padded.flatten(0, 2).index_select(0, pixels.flatten()).view(images.shape)


def rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Each image turned about its centre by an angle uniform in [-degrees, degrees], bilinear; what moves in is 0.

    `images` is (B, C, H, W) float32. The generator lives on the device of `images`.
    """
    batch, _, height, width = images.shape
    device = images.device
    angle = (torch.rand(batch, device=device, generator=generator) * 2 - 1) * math.radians(degrees)
    # A pixel comes from the sum of where its column and where its row leads: two short lines of points for each image.
    # affine_grid would multiply a matrix for every pixel and take longer than the sampling.
    rows, columns = (torch.arange(length, device=device) - (length - 1) / 2 for length in (height, width))
    across, down = 2 / width, 2 / height  # to grid_sample a picture reaches from -1 to 1 on both sides
    right_leads = torch.stack([angle.cos() * across, angle.sin() * down], dim=1)
    down_leads = torch.stack([-angle.sin() * across, angle.cos() * down], dim=1)
    grid = right_leads[:, :, None, None] * columns + down_leads[:, :, None, None] * rows[:, None]  # (B, 2, H, W)
    return F.grid_sample(images, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
