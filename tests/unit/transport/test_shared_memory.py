"""Lanes: where everything stands in them, and who may open them."""

import os
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psys.ps.codec import Wire, gradient_codec, parameter_codec
from psys.ps.partition import partition
from psys.transport.shared_memory import Lane, LaneAddress, Layout, RemoteLane
from tests.support.processes import run

SMALL = Layout(partition(100, 2), statistics=7, slots=2)

ANOTHER_PROCESS = """
import sys, torch
from psys.transport.shared_memory import LaneAddress, Layout, RemoteLane
from psys.ps.partition import partition
pid, fd, token = sys.argv[1:]
layout = Layout(partition(100, 2), statistics=7, slots=2)
lane = RemoteLane(layout, LaneAddress(int(pid), int(fd), bytes.fromhex(token)))
assert lane.shared
print(lane[slice(5000, 5004)].tolist())
lane.memory[6000:6003] = torch.tensor([7, 8, 9], dtype=torch.uint8)
"""


@given(
    numel=st.integers(300, 5000),
    servers=st.integers(1, 10),
    statistics=st.integers(0, 2000),
    slots=st.integers(1, 5),
    wire=st.sampled_from(["fp32", "bf16", "fp16", "topk"]),
    share=st.floats(0.001, 1),
)
def test_everything_has_a_place_of_its_own(
    numel: int, servers: int, statistics: int, slots: int, wire: Wire, share: float
) -> None:
    layout = Layout(partition(numel, servers), statistics, slots, wire, share)
    numels = [part.stop - part.start for part in layout.slices]
    outgoing, incoming = gradient_codec(wire, share), parameter_codec(wire)
    places: list[tuple[int, int]] = []
    for slot in range(slots):
        places.append((layout.statistics(slot).start, 4 * statistics))
        for coming, going, n in zip(layout.parameters(slot), layout.gradient(slot), numels, strict=True):
            assert coming.start == going.start  # the one takes the other's place
            assert (coming.stop - coming.start, going.stop - going.start) == (incoming.nbytes(n), outgoing.nbytes(n))
            places.append((coming.start, max(incoming.nbytes(n), outgoing.nbytes(n))))
    assert all(start % 4 == 0 for start, _ in places)
    spans = sorted((start, start + size) for start, size in places if size)
    assert spans[0][0] >= 16  # behind the token
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert spans[-1][1] <= layout.nbytes


def test_the_servers_parts_follow_one_another_so_that_a_model_can_live_in_them() -> None:
    for spans in (SMALL.parameters(0), SMALL.gradient(0), SMALL.parameters(1), SMALL.gradient(1)):
        assert spans[0].stop == spans[1].start
        assert spans[1].stop - spans[0].start == 400


def test_a_slot_has_views_of_what_stands_in_it() -> None:
    lane = Lane(SMALL)
    for number, slot in enumerate(lane.slots):
        for views, spans in (
            (slot.parameters, SMALL.parameters(number)),
            (slot.gradient, SMALL.gradient(number)),
            ([slot.statistics.view(torch.uint8)], [SMALL.statistics(number)]),
        ):
            for view, span in zip(views, spans, strict=True):
                assert (view.data_ptr(), len(view)) == (lane[span].data_ptr(), span.stop - span.start)


def test_another_process_reads_and_writes_a_lane(tmp_path: Path) -> None:
    lane = Lane(SMALL)
    lane.memory[5000:5004] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    pid, fd, token = lane.address
    done = run("-c", ANOTHER_PROCESS, str(pid), str(fd), token.hex(), cwd=tmp_path)
    assert done.out == "[1, 2, 3, 4]\n", done.err
    assert lane.memory[6000:6003].tolist() == [7, 8, 9]


def test_a_chunk_is_a_view() -> None:
    lane = Lane(SMALL)
    chunk = lane.chunk(5000, 5004)
    lane.memory[5001] = 9
    assert chunk.tolist() == [0, 9, 0, 0]


def _another_token(lane: Lane) -> LaneAddress:
    return lane.address._replace(token=bytes(16))


def _no_such_process(lane: Lane) -> LaneAddress:
    return lane.address._replace(pid=2**22 + 1)  # above the largest that Linux gives


def _another_process(lane: Lane) -> LaneAddress:
    return lane.address._replace(pid=os.getppid())


def _closed(lane: Lane) -> LaneAddress:
    os.close(lane.address.fd)
    return lane.address


def _pipe(lane: Lane) -> LaneAddress:
    return lane.address._replace(fd=os.pipe()[0])


def _regular_file_with_the_token(lane: Lane) -> LaneAddress:
    fd, _ = tempfile.mkstemp(prefix="psys-lane")
    os.write(fd, lane.address.token)
    os.ftruncate(fd, SMALL.nbytes)
    return lane.address._replace(fd=fd)


def _lane_of_another_size(lane: Lane) -> LaneAddress:
    os.ftruncate(lane.address.fd, SMALL.nbytes + 1)
    return lane.address


def _none(lane: Lane) -> None:
    return None


@pytest.mark.parametrize(
    "address_of",
    [
        _another_token,
        _no_such_process,
        _another_process,
        _closed,
        _pipe,
        _regular_file_with_the_token,
        _lane_of_another_size,
        _none,
    ],
)
def test_what_is_not_that_lane_gets_a_copy_of_its_own(
    address_of: Callable[[Lane], LaneAddress | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lane = Lane(SMALL)
    before = lane.memory.clone()
    apart = RemoteLane(SMALL, address_of(lane))
    assert not apart.shared
    assert not apart.memory.any()
    apart[slice(5000, 5008)].fill_(1)
    assert torch.equal(lane.memory, before)


def test_a_lane_outlives_its_worker_for_the_server_that_has_it_open(tmp_path: Path) -> None:
    """And no name of it is left anywhere: the file of a worker that was killed goes with its last reader."""
    script = """
import os, signal, sys, torch
from psys.transport.shared_memory import Lane, Layout
lane = Lane(Layout((slice(0, 100),), statistics=7, slots=2))
lane.memory[5000] = 42
pid, fd, token = lane.address
print(pid, fd, token.hex(), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE, text=True, cwd=tmp_path) as worker:
        assert worker.stdin
        assert worker.stdout
        pid, fd, token = worker.stdout.readline().split()
        layout = Layout((slice(0, 100),), statistics=7, slots=2)
        lane = RemoteLane(layout, LaneAddress(int(pid), int(fd), bytes.fromhex(token)))
        assert lane.shared
        assert os.readlink(f"/proc/{pid}/fd/{fd}").endswith("(deleted)")
        worker.stdin.write("\n")
    assert worker.returncode == -9
    assert lane.memory[5000] == 42
    assert not [name for name in os.listdir("/dev/shm") if "psys" in name]
    assert not list(tmp_path.iterdir())
