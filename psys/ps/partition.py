"""Which contiguous slice of the flat parameter vector each server holds."""

from itertools import pairwise

LINE = 16
"""Elements of a cache line."""


def partition(numel: int, shards: int) -> tuple[slice, ...]:
    """Cut a vector of `numel` elements into `shards` contiguous slices, as equal as cuts between cache lines allow.

    A vectorised optimizer rounds what is left over of a line otherwise than a whole one: with cuts in between, the
    parameters do not depend on the number of servers. Raises ValueError when there are fewer lines than shards.
    """
    lines = -(-numel // LINE)
    if not 1 <= shards <= lines:
        raise ValueError(f"cannot cut {numel} parameters into {shards} shards of at least {LINE}")
    bounds = [min(numel, shard * lines // shards * LINE) for shard in range(shards + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(bounds))
