"""A worker's lane: the memory in which its gradients go out and parameters come in.

It belongs to the worker and has no name on disk: a server on the same host opens it through /proc and reads and writes
it in place, so nothing is left when either dies. A server elsewhere keeps a copy of its part, which the worker fills
and reads in chunks.
"""

import mmap
import os
import secrets
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from psys.ps.codec import Wire, gradient_codec, parameter_codec

_NAME = "psys-lane"
_TOKEN_BYTES = 16
_ALIGNMENT = 4096  # the same on every host, whatever its pages


class LaneAddress(NamedTuple):
    """Where on its host a lane can be opened, and the token that proves it is that one."""

    pid: int
    fd: int
    token: bytes


class Layout:
    """Where everything stands in a lane, in bytes: `slots`, each with statistics and a vector.

    A slot holds what its lease reads, and then, in the same place, what it hands in: in the worker's hands parameters
    become a gradient, and in the servers' the gradient becomes parameters. `slices` are the servers' parts of the flat
    vector, whose payloads follow one another: of a format without overhead they make one vector.
    """

    def __init__(
        self, slices: tuple[slice, ...], statistics: int, slots: int, wire: Wire = "fp32", topk_share: float = 0.01
    ) -> None:
        self.slices, self.slots = slices, slots
        self._end = _ALIGNMENT  # what comes first is the token
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
        return self._statistics[slot]

    def _reserve(self, sizes: list[int]) -> list[slice]:
        parts = []
        for size in sizes:
            parts.append(slice(self._end, self._end + size))
            self._end += size
        self._end += -self._end % _ALIGNMENT
        return parts


def _first(span: slice, nbytes: int) -> slice:
    return slice(span.start, span.start + nbytes)


class Slot(NamedTuple):
    """Views of what stands in a slot, made once: a small model's step is short."""

    parameters: list[Tensor]  # each server's part of the payload, uint8
    gradient: list[Tensor]  # the same
    statistics: Tensor  # (m,) float32


class _Memory:
    """`memory`: (layout.nbytes,) uint8."""

    def __init__(self, layout: Layout, memory: Tensor) -> None:
        self.layout, self.memory = layout, memory
        self.slots = [
            Slot(
                [memory[span] for span in layout.parameters(slot)],
                [memory[span] for span in layout.gradient(slot)],
                memory[layout.statistics(slot)].view(torch.float32),
            )
            for slot in range(layout.slots)
        ]

    def __getitem__(self, span: slice) -> Tensor:
        return self.memory[span]

    def chunk(self, start: int, stop: int) -> Tensor:
        """Bytes to be sent. Made through numpy they own their storage for torch, which would copy a plain view."""
        return torch.from_numpy(self.memory.numpy()[start:stop])


class Lane(_Memory):
    """The worker's side, in memory shared with the servers on its host."""

    def __init__(self, layout: Layout) -> None:
        self._file = os.fdopen(os.memfd_create(_NAME), "r+b", buffering=0)
        fd = self._file.fileno()
        os.ftruncate(fd, layout.nbytes)
        mapped = mmap.mmap(fd, layout.nbytes)
        token = secrets.token_bytes(_TOKEN_BYTES)
        mapped[:_TOKEN_BYTES] = token
        self.address = LaneAddress(os.getpid(), fd, token)
        super().__init__(layout, torch.frombuffer(mapped, dtype=torch.uint8))


class RemoteLane(_Memory):
    """The server's side: `memory` is the worker's own where it can be seen (`shared`), else this server's copy."""

    def __init__(self, layout: Layout, address: LaneAddress | None) -> None:
        file = _opened(address, layout.nbytes) if address else None
        self.shared = file is not None
        # Pages of a copy that are never touched, those of other servers' parts, take no memory.
        mapped = mmap.mmap(file.fileno() if file else -1, layout.nbytes)
        super().__init__(layout, torch.frombuffer(mapped, dtype=torch.uint8))
        if file:
            file.close()


def _opened(address: LaneAddress, nbytes: int) -> BinaryIO | None:
    """The lane's file, if this process is on its host and may open it, and it is that lane indeed."""
    path = Path(f"/proc/{address.pid}/fd/{address.fd}")
    try:
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            return None
        file = path.open("r+b", buffering=0)
    except OSError:
        return None
    if os.fstat(file.fileno()).st_size == nbytes and os.pread(file.fileno(), _TOKEN_BYTES, 0) == address.token:
        return file
    file.close()
    return None
