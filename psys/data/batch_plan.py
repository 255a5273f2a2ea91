"""How the training images are divided into the batches of a run: which part of which epoch a batch is."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class _Part(NamedTuple):
    """Epochs from `epoch` on, whose first batch is `batch`, in batches of one size."""

    epoch: int
    batch: int
    batch_size: int
    per_epoch: int  # batches


class BatchPlan:
    """Batches 0, 1, 2 ... of passes over `samples`, each in ceil(samples / batch_size) batches.

    The last batch of an epoch may be smaller. `earlier`: rows (batch size, epoch), ascending in epochs: the batch size
    of the epochs before that one.
    """

    def __init__(self, samples: int, batch_size: int, earlier: Sequence[tuple[int, int]] = ()) -> None:
        self.samples = samples
        self._parts: list[_Part] = []
        first = 0
        for size, end in (*earlier, (batch_size, None)):
            before = self._parts[-1] if self._parts else None
            batch = before.batch + (first - before.epoch) * before.per_epoch if before else 0
            self._parts.append(_Part(first, batch, size, -(-samples // size)))
            first = end if end is not None else first

    @property
    def parts(self) -> int:
        """Stretches of epochs with one batch size."""
        return len(self._parts)

    def batches(self, epochs: int) -> int:
        """Batches in the first `epochs` epochs."""
        last = next(part for part in reversed(self._parts) if part.epoch <= epochs)
        return last.batch + (epochs - last.epoch) * last.per_epoch

    def part_of(self, batch: int) -> int:
        """Number of the part that the batch is in."""
        return bisect_right(self._parts, batch, key=lambda part: part.batch) - 1

    def place(self, batch: int) -> tuple[int, int, int]:
        """Epoch of the batch, and its first and last position, [first, last), in the order of that epoch's samples."""
        part = self._parts[self.part_of(batch)]
        epoch, index = divmod(batch - part.batch, part.per_epoch)
        first = index * part.batch_size
        return part.epoch + epoch, first, min(first + part.batch_size, self.samples)

    def within(self, epoch: int, first: int, last: int) -> range:
        """The batches of the positions [first, last) of an epoch, at whose ends batches begin and end."""
        part = next(part for part in reversed(self._parts) if part.epoch <= epoch)
        before = part.batch + (epoch - part.epoch) * part.per_epoch
        return range(before + first // part.batch_size, before - (-last // part.batch_size))

    def size(self, batch: int) -> int:
        """Samples in the batch."""
        _, first, last = self.place(batch)
        return last - first

    def epochs(self, applied: Sequence[int]) -> float:
        """Epochs that batches amount to, given their number in each part."""
        return sum(count / part.per_epoch for count, part in zip(applied, self._parts, strict=True))
