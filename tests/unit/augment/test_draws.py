import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psys.augment.draws import draw


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 4), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_drawn_positions_are_allowed(count: int, length: int, repeats: int, density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(count, length, generator=generator) < density
    positions, found = draw(allowed, repeats, generator)
    rows = torch.arange(count).repeat(repeats)
    assert torch.equal(found, allowed.any(dim=1)[rows])
    assert torch.equal(allowed[rows, positions], found)


def test_draw_is_uniform_over_allowed_positions(generator: torch.Generator) -> None:
    allowed = torch.tensor([[True, False, True, True, False], [False, False, False, False, True]])
    positions, _ = draw(allowed, 30_000, generator)
    first, second = positions.view(-1, 2).T
    assert bool((second == 4).all())
    counts = first.bincount(minlength=5)
    assert bool(((counts - 10_000 * allowed[0]).abs() < 500).all())  # six standard deviations
