import pytest
import torch
from torch import Tensor

from psys.augment.cutout import cutout


@pytest.mark.parametrize("size", [1, 4, 5])
def test_holes_are_the_clipped_boxes_about_every_pixel(size: int, generator: torch.Generator) -> None:
    height, width = 6, 7
    boxes = set()
    for row in range(height):
        for column in range(width):
            image = torch.ones(height, width)
            top, left = row - size // 2, column - size // 2
            image[max(top, 0) : top + size, max(left, 0) : left + size] = 0
            boxes.add(image.numpy().tobytes())
    cut = cutout(torch.ones(3000, 3, height, width), size, generator)
    assert torch.equal(cut, cut[:, :1].expand_as(cut))  # all channels alike
    assert {image.contiguous().numpy().tobytes() for image in cut[:, 0]} == boxes


def test_sixteen_pixels_hide_what_the_paper_hides(generator: torch.Generator) -> None:
    side = sum(min(centre + 8, 32) - max(centre - 8, 0) for centre in range(32)) / 32
    hidden = (cutout(torch.ones(20_000, 1, 32, 32), 16, generator) == 0).float().sum(dim=(1, 2, 3))
    assert hidden.mean().item() == pytest.approx(side**2, rel=0.02)
    assert hidden.max() == 256
    assert hidden.min() == 64  # the corner: a quarter


def test_what_is_not_hidden_stays(images: Tensor, generator: torch.Generator) -> None:
    pixels = images.permute(0, 3, 1, 2).float() + 1
    before = pixels.clone()
    cut = cutout(pixels, 8, generator)
    assert torch.equal(cut[cut != 0], pixels[cut != 0])
    assert torch.equal(pixels, before)
