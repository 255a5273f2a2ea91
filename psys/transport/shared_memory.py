"""A worker's buffer in memory that servers on the same host map: a push and a pull copy nothing.

The memory belongs to the worker and has no name on disk. A server on the same host opens it through /proc and reads and
writes it in place, so nothing is left when either process dies. A server elsewhere keeps a copy of its part, which the
worker fills and reads in chunks.
"""

import mmap
import os
import secrets
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from psys.ps.slots import BufferLayout, slots_in
from psys.transport.protocol import BufferAddress

_NAME = "psys-worker-buffer"
_TOKEN_BYTES = 16


class _Buffer:
    """`memory`: (layout.nbytes,) uint8."""

    def __init__(self, layout: BufferLayout, memory: Tensor) -> None:
        self.layout, self.memory = layout, memory
        self.slots = slots_in(memory, layout)

    def chunk(self, start: int, stop: int) -> Tensor:
        """Bytes [start, stop), to be sent. Made through numpy they own their storage; torch would copy a plain view."""
        return torch.from_numpy(self.memory.numpy()[start:stop])


class WorkerBuffer(_Buffer):
    """The worker's side: memory that servers on its host can map."""

    def __init__(self, layout: BufferLayout) -> None:
        self._file = os.fdopen(os.memfd_create(_NAME), "r+b", buffering=0)
        fd = self._file.fileno()
        os.ftruncate(fd, layout.nbytes)
        mapped = mmap.mmap(fd, layout.nbytes)
        token = secrets.token_bytes(_TOKEN_BYTES)
        mapped[:_TOKEN_BYTES] = token  # in the header that the layout leaves free
        self.address = BufferAddress(os.getpid(), fd, token)
        super().__init__(layout, torch.frombuffer(mapped, dtype=torch.uint8))


class MappedBuffer(_Buffer):
    """The server's side: `memory` is the worker's own where this process can map it (`shared`), else a copy."""

    def __init__(self, layout: BufferLayout, address: BufferAddress | None) -> None:
        file = _open(address, layout.nbytes) if address else None
        self.shared = file is not None
        # Pages of a copy that are never touched, such as other servers' parts, take no memory.
        mapped = mmap.mmap(file.fileno() if file else -1, layout.nbytes)
        super().__init__(layout, torch.frombuffer(mapped, dtype=torch.uint8))
        if file:
            file.close()


def _open(address: BufferAddress, nbytes: int) -> BinaryIO | None:
    """The buffer's file, if this process is on its host, may open it, and finds the buffer's token in it."""
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
