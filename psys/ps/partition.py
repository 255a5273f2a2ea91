"""Which contiguous slice of the flat parameter vector each server holds."""

from itertools import pairwise


def partition(numel: int, shards: int) -> tuple[slice, ...]:
    """Cut a vector of `numel` elements into `shards` contiguous slices whose lengths differ by at most one.

    Raises ValueError when there are fewer elements than shards.
    """
    if not 1 <= shards <= numel:
        raise ValueError(f"cannot cut {numel} parameters into {shards} shards")
    short, longer = divmod(numel, shards)
    bounds = [shard * short + min(shard, longer) for shard in range(shards + 1)]
    return tuple(slice(start, stop) for start, stop in pairwise(bounds))
