"""The layout of a worker's buffer: slots in which parameters come in and gradients go out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from psys.ps.codec import Wire, gradient_codec, parameter_codec

ALIGNMENT = 4096
"""Bytes that every part of a buffer is aligned to; the same on every host, whatever its page size."""


class BufferLayout:
    """Where everything lies in a worker's buffer, in bytes: a header, then `slots` slots of statistics and a vector.

    A slot holds what its lease reads and then, in the same place, what the worker hands in: the worker turns parameters
    into a gradient, and the servers turn the gradient into parameters. `slices` are the servers' parts of the flat
    vector. Their payloads follow one another: without overhead of the wire format they form one vector.
    """

    def __init__(
        self, slices: tuple[slice, ...], statistics: int, slots: int, wire: Wire = "fp32", topk_share: float = 0.01
    ) -> None:
        self.slices, self.slots = slices, slots
        self._end = ALIGNMENT
        numels = [part.stop - part.start for part in slices]
        self._parameter_bytes = [parameter_codec(wire).nbytes(numel) for numel in numels]
        self._gradient_bytes = [gradient_codec(wire, topk_share).nbytes(numel) for numel in numels]
        self._statistics = [self._reserve([4 * statistics])[0] for _ in range(slots)]
        both = list(map(max, self._parameter_bytes, self._gradient_bytes))
        self._vectors = [self._reserve(both) for _ in range(slots)]
        self.nbytes = self._end

    def parameters(self, slot: int) -> list[slice]:
        """Each server's part of the parameters in `slot`."""
        return list(map(_first, self._vectors[slot], self._parameter_bytes))

    def gradient(self, slot: int) -> list[slice]:
        """Each server's part of the gradient in `slot`."""
        return list(map(_first, self._vectors[slot], self._gradient_bytes))

    def statistics(self, slot: int) -> slice:
        """The running statistics in `slot`."""
        return self._statistics[slot]

    def _reserve(self, sizes: list[int]) -> list[slice]:
        parts = []
        for size in sizes:
            parts.append(slice(self._end, self._end + size))
            self._end += size
        self._end += -self._end % ALIGNMENT
        return parts


class Slot(NamedTuple):
    """Views of one slot. They are made once, because the step of a small model is short."""

    parameters: list[Tensor]  # each server's part of the payload, uint8
    gradient: list[Tensor]  # each server's part of the payload, uint8
    statistics: Tensor  # (m,) float32


def slots_in(memory: Tensor, layout: BufferLayout) -> Sequence[Slot]:
    """Views of all slots of a buffer: `memory` is (layout.nbytes,) uint8."""
    return [
        Slot(
            [memory[span] for span in layout.parameters(slot)],
            [memory[span] for span in layout.gradient(slot)],
            memory[layout.statistics(slot)].view(torch.float32),
        )
        for slot in range(layout.slots)
    ]


def _first(span: slice, nbytes: int) -> slice:
    return slice(span.start, span.start + nbytes)
