"""Worker buffers in shared memory, and which processes may map them."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import torch

from psys.ps.partition import partition
from psys.ps.slots import BufferLayout
from psys.transport.protocol import BufferAddress
from psys.transport.shared_memory import MappedBuffer, WorkerBuffer
from tests.support.processes import PROGRAMS, run

LAYOUT = BufferLayout(partition(100, 2), statistics=7, slots=2)


def test_another_process_reads_and_writes_a_workers_buffer(tmp_path: Path) -> None:
    buffer = WorkerBuffer(LAYOUT)
    buffer.memory[5000:5004] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    pid, fd, token = buffer.address
    done = run(str(PROGRAMS / "map_buffer.py"), str(pid), str(fd), token.hex(), cwd=tmp_path)
    assert done.out == "[1, 2, 3, 4]\n", done.err
    assert buffer.memory[6000:6003].tolist() == [7, 8, 9]


def test_the_slots_of_a_mapped_buffer_are_those_of_the_worker() -> None:
    buffer = WorkerBuffer(LAYOUT)
    mapped = MappedBuffer(LAYOUT, buffer.address)
    assert mapped.shared
    buffer.slots[1].gradient[0].fill_(5)
    mapped.slots[1].statistics.fill_(0.5)
    assert torch.equal(mapped.slots[1].gradient[0], buffer.slots[1].gradient[0])
    assert buffer.slots[1].statistics.tolist() == [0.5] * 7


def test_a_chunk_is_a_view() -> None:
    buffer = WorkerBuffer(LAYOUT)
    chunk = buffer.chunk(5000, 5004)
    buffer.memory[5001] = 9
    assert chunk.tolist() == [0, 9, 0, 0]


def _another_token(buffer: WorkerBuffer) -> BufferAddress:
    return buffer.address._replace(token=bytes(16))


def _no_such_process(buffer: WorkerBuffer) -> BufferAddress:
    return buffer.address._replace(pid=2**22 + 1)  # above the largest that Linux assigns


def _another_process(buffer: WorkerBuffer) -> BufferAddress:
    return buffer.address._replace(pid=os.getppid())


def _closed_file(buffer: WorkerBuffer) -> BufferAddress:
    os.close(buffer.address.fd)
    return buffer.address


def _pipe(buffer: WorkerBuffer) -> BufferAddress:
    return buffer.address._replace(fd=os.pipe()[0])


def _regular_file_with_the_token(buffer: WorkerBuffer) -> BufferAddress:
    fd, _ = tempfile.mkstemp(prefix="psys-worker-buffer")
    os.write(fd, buffer.address.token)
    os.ftruncate(fd, LAYOUT.nbytes)
    return buffer.address._replace(fd=fd)


def _buffer_of_another_size(buffer: WorkerBuffer) -> BufferAddress:
    os.ftruncate(buffer.address.fd, LAYOUT.nbytes + 1)
    return buffer.address


def _no_address(buffer: WorkerBuffer) -> None:
    return None


@pytest.mark.parametrize(
    "address_of",
    [
        _another_token,
        _no_such_process,
        _another_process,
        _closed_file,
        _pipe,
        _regular_file_with_the_token,
        _buffer_of_another_size,
        _no_address,
    ],
)
def test_a_server_that_cannot_map_the_buffer_keeps_a_copy(
    address_of: Callable[[WorkerBuffer], BufferAddress | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    buffer = WorkerBuffer(LAYOUT)
    before = buffer.memory.clone()
    copied = MappedBuffer(LAYOUT, address_of(buffer))
    assert not copied.shared
    assert not copied.memory.any()
    copied.memory[5000:5008].fill_(1)
    assert torch.equal(buffer.memory, before)


def test_a_mapped_buffer_stays_valid_after_its_worker_was_killed(tmp_path: Path) -> None:
    """The memory has no name on disk, so nothing is left once the server has closed it as well."""
    program = [sys.executable, str(PROGRAMS / "own_buffer.py")]
    with Popen(program, stdin=PIPE, stdout=PIPE, text=True, cwd=tmp_path) as worker:
        assert worker.stdin
        assert worker.stdout
        pid, fd, token = worker.stdout.readline().split()
        mapped = MappedBuffer(LAYOUT, BufferAddress(int(pid), int(fd), bytes.fromhex(token)))
        assert mapped.shared
        assert os.readlink(f"/proc/{pid}/fd/{fd}").endswith("(deleted)")
        worker.stdin.write("\n")
    assert worker.returncode == -9
    assert mapped.memory[5000] == 42
    assert not [name for name in os.listdir("/dev/shm") if "psys" in name]
    assert not list(tmp_path.iterdir())
