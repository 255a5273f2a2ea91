import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from psys.augment.geometry import flip_shift, rotate


def moved(image: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    """One image flipped and shifted by slicing."""
    height, width = image.shape[:2]
    shift = max(abs(down), abs(right))
    padded = F.pad(image.flip(1) if mirrored else image, (0, 0, shift, shift, shift, shift))
    return padded[shift - down : shift - down + height, shift - right : shift - right + width]


def test_flip_shift_gives_every_flip_and_shift(images: Tensor, generator: torch.Generator) -> None:
    image = images[0, :20]  # not square
    copies = flip_shift(image.expand(1000, *image.shape), True, 1, generator)
    seen = {copy.numpy().tobytes() for copy in copies}
    moves = (-1, 0, 1)
    assert seen == {
        moved(image, down, right, mirrored).contiguous().numpy().tobytes()
        for down in moves
        for right in moves
        for mirrored in (False, True)
    }


def test_images_of_a_batch_move_independently(images: Tensor, generator: torch.Generator) -> None:
    copies = flip_shift(images[:1].expand(64, -1, -1, -1), True, 4, generator)
    assert len(torch.unique(copies, dim=0)) > 30


@pytest.mark.parametrize("flip", [False, True])
def test_without_shift_images_are_equal_or_mirrored(images: Tensor, generator: torch.Generator, flip: bool) -> None:
    result = flip_shift(images, flip, 0, generator)
    same = (result == images).flatten(1).all(dim=1)
    mirrored = (result == images.flip(2)).flatten(1).all(dim=1)
    assert bool((same | mirrored).all())
    assert 0.35 < mirrored.float().mean() < 0.65 if flip else bool(same.all())


def test_masks_move_with_their_images(images: Tensor) -> None:
    masks = images[..., 0] > 100
    moved_images = flip_shift(images, True, 4, torch.Generator().manual_seed(3))
    moved_masks = flip_shift(masks, True, 4, torch.Generator().manual_seed(3))
    assert moved_masks.dtype == torch.bool
    assert torch.equal(moved_masks, moved_images[..., 0] > 100)


def test_rotation_by_zero_degrees_is_the_identity(images: Tensor, generator: torch.Generator) -> None:
    pixels = images[:8].permute(0, 3, 1, 2).float()
    torch.testing.assert_close(rotate(pixels, 0.0, generator), pixels, atol=1e-2, rtol=0)


def test_rotation_is_about_the_centre(generator: torch.Generator) -> None:
    height, width, degrees = 21, 41, 40.0
    spot = torch.zeros(200, 1, height, width)
    spot[:, :, 9:12, 29:32] = 1  # centred 10 pixels to the right of the centre
    rotated = rotate(spot, degrees, generator)[:, 0]
    mass = rotated.sum(dim=(1, 2))
    row = (rotated.sum(dim=2) * torch.arange(height)).sum(dim=1) / mass - 10
    column = (rotated.sum(dim=1) * torch.arange(width)).sum(dim=1) / mass - 20
    torch.testing.assert_close(torch.hypot(row, column), torch.full((200,), 10.0), atol=0.1, rtol=0)
    angle = torch.rad2deg(torch.atan2(row, column))
    assert angle.abs().max() < degrees + 1
    assert angle.min() < -0.9 * degrees
    assert angle.max() > 0.9 * degrees


def test_rotated_corners_are_zero(generator: torch.Generator) -> None:
    rotated = rotate(torch.ones(50, 3, 32, 32), 45.0, generator)
    assert bool((rotated[:, 0, 16, 0] > 0).all())  # the centre of a side is covered at every angle
    assert (rotated[:, :, 0, 0] == 0).float().mean() > 0.5  # a corner is uncovered at most angles
