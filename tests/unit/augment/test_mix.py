import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psys.augment.mix import mixing_rectangles, visible_share


def test_rectangle_areas_follow_cutmix(generator: torch.Generator) -> None:
    rectangles = mixing_rectangles(torch.ones(20_000, dtype=torch.bool), (32, 32), generator)
    area = rectangles.float().mean(dim=(1, 2))
    # A side of length s * 32 with a uniform centre covers s - s^2 / 4 of the image's side, and s^2 is uniform.
    s = torch.rand(200_000, generator=generator).sqrt()
    assert area.mean().item() == pytest.approx(((s - s**2 / 4) ** 2).mean().item(), abs=0.01)
    assert area.max() > 0.95
    assert area.min() == 0


def test_visible_share_counts_visible_foreground() -> None:
    own, other, hole = (torch.zeros(4, 10, 10, dtype=torch.bool) for _ in range(3))
    own[:, :5] = True
    other[:, :, :4] = True
    hole[:3, 3:8] = True
    own[2], other[2] = False, False
    by_mask = torch.tensor([True, False, True, True])
    # 30 own and 20 other foreground pixels; by area; no foreground visible, so by area; no rectangle.
    assert visible_share(own, other, hole, by_mask).tolist() == pytest.approx([0.4, 0.5, 0.5, 0.0])


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_visible_share_is_between_0_and_1(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks, others = (torch.rand(32, height, width, generator=generator) < 0.3 for _ in range(2))
    by_mask = torch.rand(32, generator=generator) < 0.5
    wanted = torch.rand(32, generator=generator) < 0.5
    share = visible_share(masks, others, mixing_rectangles(wanted, (height, width), generator), by_mask)
    assert bool(((share >= 0) & (share <= 1)).all())
    assert not share[~wanted].any()
