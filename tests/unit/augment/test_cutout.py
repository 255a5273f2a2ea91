import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psys.augment.cutout import holes, sparing_holes


def squares_at_every_pixel(size: int, height: int, width: int) -> set[bytes]:
    squares = set()
    for row in range(height):
        for column in range(width):
            hole = torch.zeros(height, width, dtype=torch.bool)
            top, left = row - size // 2, column - size // 2
            hole[max(top, 0) : top + size, max(left, 0) : left + size] = True
            squares.add(hole.numpy().tobytes())
    return squares


def all_wanted(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def distinct(masks: Tensor) -> set[bytes]:
    return {mask.contiguous().numpy().tobytes() for mask in masks}


@pytest.mark.parametrize("size", [1, 4, 5])
def test_holes_are_clipped_squares_centred_at_every_pixel(size: int, generator: torch.Generator) -> None:
    assert distinct(holes(all_wanted(3000), (6, 7), size, generator)) == squares_at_every_pixel(size, 6, 7)


def test_hole_of_16_pixels_hides_the_papers_area(generator: torch.Generator) -> None:
    side = sum(min(centre + 8, 32) - max(centre - 8, 0) for centre in range(32)) / 32
    hidden = holes(all_wanted(20_000), (32, 32), 16, generator).float().sum(dim=(1, 2))
    assert hidden.mean().item() == pytest.approx(side**2, rel=0.02)
    assert hidden.max() == 256
    assert hidden.min() == 64  # at a corner: a quarter of the square


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 12),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_sparing_hole_hides_at_most_the_allowed_share(
    height: int, width: int, size: int, most: float, density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(16, height, width, generator=generator) < density
    found = sparing_holes(all_wanted(16), masks, size, most, generator)
    erased, foreground = (each.sum(dim=(1, 2)) for each in (found & masks, masks))
    assert bool((erased <= most * foreground + 1e-4).all())
    assert distinct(found) <= squares_at_every_pixel(size, height, width) | {bytes(height * width)}


def test_sparing_holes_cover_all_allowed_positions(
    generator: torch.Generator,
) -> None:
    mask = torch.zeros(6, 7, dtype=torch.bool)
    mask[2:4, 3] = True
    allowed = {hole for hole in squares_at_every_pixel(3, 6, 7) if (overlap(hole, mask)).sum() <= 1}
    assert distinct(sparing_holes(all_wanted(3000), mask.expand(3000, -1, -1), 3, 0.5, generator)) == allowed
    full = torch.ones(50, 6, 7, dtype=torch.bool)
    assert not sparing_holes(all_wanted(50), full, 2, 0.01, generator).any()
    assert sparing_holes(all_wanted(50), full, 2, 1.0, generator).flatten(1).any(dim=1).all()


def test_only_wanted_images_have_holes(generator: torch.Generator) -> None:
    wanted = torch.arange(50) % 3 == 0
    masks = torch.zeros(50, 6, 7, dtype=torch.bool)
    for hidden in (holes(wanted, (6, 7), 3, generator), sparing_holes(wanted, masks, 3, 0.5, generator)):
        assert torch.equal(hidden.flatten(1).any(dim=1), wanted)


def overlap(hole: bytes, mask: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(hole), dtype=torch.bool).view(mask.shape) & mask
