"""Which contiguous slice of the flat parameter vector each server holds."""

from itertools import pairwise

CACHE_LINE = 16
"""Elements of a cache line."""


def partition(numel: int, slices: int) -> tuple[slice, ...]:
    """Cut a vector of `numel` elements into `slices` contiguous slices, as equal as cuts between cache lines allow.

    A vectorised optimizer rounds what is left over of a line otherwise than a whole one: with cuts in between, the
    parameters do not depend on the number of servers. Raises ValueError when there are fewer lines than slices.
    """
    lines = -(-numel // CACHE_LINE)
    if not 1 <= slices <= lines:
        raise ValueError(f"cannot cut {numel} parameters into {slices} slices of at least {CACHE_LINE}")
    bounds = [min(numel, number * lines // slices * CACHE_LINE) for number in range(slices + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(bounds))
