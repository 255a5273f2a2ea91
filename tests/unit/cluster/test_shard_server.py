"""Servers' slices fed through workers' lanes, seen or apart, in every wire format; no wire between them."""

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from psys.cluster.shard_server import Shard
from psys.models.registry import build
from psys.ps.codec import Wire, gradient_codec, parameter_codec
from psys.ps.coordinator import Update
from psys.ps.ledger import Lease
from psys.ps.store import Contribution, OptimizerConfig, ParameterStore, Snapshot
from psys.run.config import RunConfig
from psys.transport.buffered_model import LanedModel
from psys.transport.protocol import Advance, Reader
from psys.transport.shared_memory import LaneAddress

RATE, STATISTICS_SHARE = 0.1, 0.75
OPTIMIZER = OptimizerConfig(weight_decay=1e-3)
WIRES = ["fp32", "bf16", "fp16", "topk"]


class Worker:
    def __init__(self, name: str, config: RunConfig, seen: bool) -> None:
        self.name, self.laned, self.seen = name, LanedModel(build("resnet8", 10), config), seen
        self.address = self.laned.lane.address if seen else LaneAddress(0, 0, b"")

    def attach(self, shards: list[Shard]) -> None:
        assert [shard.attach(self.name, self.address, shard.layout.nbytes) for shard in shards] == [self.seen] * len(
            shards
        )

    def send(self, shards: list[Shard], slot: int, gradient: Tensor, statistics: Tensor) -> None:
        layout, lane = self.laned.lane.layout, self.laned.lane
        self.laned.models[slot].gradient.copy_(gradient)
        self.laned.models[slot].statistics.copy_(statistics)
        self.laned.send(slot)
        if not self.seen:
            for shard, span in zip(shards, layout.gradient(slot), strict=True):
                for start in range(span.start, span.stop, 50_000):
                    shard.put(self.name, start, lane.chunk(start, min(start + 50_000, span.stop)))
            span = layout.statistics(slot)
            shards[0].put(self.name, span.start, lane[span])

    def receive(self, shards: list[Shard], slot: int) -> tuple[Tensor, Tensor]:
        layout, lane = self.laned.lane.layout, self.laned.lane
        if not self.seen:
            parts = zip(shards, layout.parameters(slot), strict=True)
            for shard, span in [*parts, (shards[0], layout.statistics(slot))]:
                lane[span].copy_(shard.get(self.name, span.start, span.stop - span.start))
        self.laned.receive(slot)
        return self.laned.models[slot].parameters.clone(), self.laned.models[slot].statistics.clone()


class Rig:
    """Servers of one run and their workers, all in this process."""

    def __init__(self, wire: Wire, seen: tuple[bool, ...], servers: int = 2, prefetch: int = 1) -> None:
        config = RunConfig(model="resnet8", mode="sync", wire=wire, servers=servers, prefetch=prefetch)
        self.workers = [Worker(f"worker{number}", config, each) for number, each in enumerate(seen)]
        model = self.workers[0].laned.models[0]
        self.numel, self.numel_of_statistics = len(model.parameters), len(model.statistics)
        layout = config.layout(self.numel, self.numel_of_statistics)
        self.initial, statistics = draw(-1, self.numel), torch.zeros(self.numel_of_statistics)
        self.shards = [
            Shard(
                number,
                ParameterStore(
                    self.initial[part],
                    part.stop - part.start,
                    statistics if number == 0 else statistics[:0],
                    OPTIMIZER,
                ),
                layout,
                wire,
                config.topk_share,
            )
            for number, part in enumerate(layout.slices)
        ]
        self.steps = 0
        for worker in self.workers:
            worker.attach(self.shards)

    def advance(
        self,
        slot: int | None,
        readers: tuple[str, ...] = (),
        released: tuple[str, ...] = (),
        drift: tuple[float, ...] = (),
        into: int = 0,
    ) -> None:
        """With an update of what all workers have sent to `slot`, if one is given; each reader's `drift`, or none.

        What is read comes `into` a slot.
        """
        leases = tuple(Lease(self.steps, 0, worker.name, self.steps, slot or 0) for worker in self.workers)
        shares = tuple((1 + number) / sum(range(1 + len(leases))) for number in range(len(leases)))
        update = Update(self.steps + 1, leases, shares, (0,) * len(leases), RATE, STATISTICS_SHARE, 0.0)
        reading = {name: Reader(into, far) for name, far in zip(readers, drift or [0.0] * len(readers), strict=True)}
        step = Advance(self.steps, () if slot is None else (update,), reading, released)
        for shard in self.shards:
            shard.advance([step]).wait()
        self.steps += 1

    def train(self, steps: int) -> list[tuple[Tensor, Tensor]]:
        """What the workers have after so many updates, which all read where the gradient was, or elsewhere."""
        slots = [(0, 0), (0, 1), (1, 1), (1, 0)]
        for step in range(steps):
            slot, into = slots[step % 4]
            for number, worker in enumerate(self.workers):
                worker.send(self.shards, slot, *self.sent(number, step))
            self.advance(slot, readers=tuple(worker.name for worker in self.workers), into=into)
        return self.receive(into)

    def receive(self, slot: int) -> list[tuple[Tensor, Tensor]]:
        return [worker.receive(self.shards, slot) for worker in self.workers]

    def sent(self, worker: int, step: int) -> tuple[Tensor, Tensor]:
        return draw(10 * step + worker, self.numel), draw(1000 + 10 * step + worker, self.numel_of_statistics)

    def snapshot(self) -> Snapshot:
        parts = [shard.snapshot().wait() for shard in self.shards]
        assert [len(part.statistics) for part in parts[1:]] == [0] * (len(parts) - 1)
        return Snapshot(parts[0].version, torch.cat([part.parameters for part in parts]), parts[0].statistics)


def draw(seed: int, numel: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed + 1))


def lanes_open() -> int:
    """Of this process, on either side."""
    return Path("/proc/self/maps").read_text().count("/memfd:psys-lane")


@pytest.mark.parametrize("wire", WIRES)
def test_what_workers_send_is_applied_and_what_they_receive_is_the_version_made_last(wire: Wire) -> None:
    rig = Rig(wire, seen=(True, True, True))
    got = rig.train(4)
    whole = ParameterStore(rig.initial, rig.numel, torch.zeros(rig.numel_of_statistics), OPTIMIZER)
    slices = rig.shards[0].layout.slices
    codecs = [[gradient_codec(wire, RunConfig().topk_share) for _ in slices] for _ in rig.workers]
    for step in range(4):
        contributions = []
        for number, of_worker in enumerate(codecs):
            gradient, statistics = rig.sent(number, step)
            decoded = []
            for codec, part in zip(of_worker, slices, strict=True):
                payload = torch.zeros(codec.nbytes(part.stop - part.start), dtype=torch.uint8)
                codec.encode(gradient[part], payload)
                decoded.append(codec.decode(payload, torch.empty(part.stop - part.start)).clone())
            contributions.append(Contribution(torch.cat(decoded), statistics, (1 + number) / 6))
        whole.apply(contributions, RATE, STATISTICS_SHARE)
    expected = whole.snapshot()
    assert torch.equal(rig.snapshot().parameters, expected.parameters)
    assert torch.equal(rig.snapshot().statistics, expected.statistics)
    returning = parameter_codec(wire)
    payload = torch.zeros(returning.nbytes(rig.numel), dtype=torch.uint8)
    returning.encode(expected.parameters, payload)
    for parameters, statistics in got:
        # Of fp16 the scale is each slice's own.
        torch.testing.assert_close(
            parameters, returning.decode(payload, torch.empty(rig.numel)), rtol=1e-3 if wire == "fp16" else 0, atol=1e-9
        )
        assert torch.equal(statistics, expected.statistics)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("servers", [1, 3])
def test_a_lane_that_cannot_be_seen_gives_the_same_as_one_that_can(wire: Wire, servers: int) -> None:
    together = Rig(wire, seen=(True, True), servers=servers)
    apart = Rig(wire, seen=(True, False), servers=servers)
    for ours, theirs in zip(together.train(4), apart.train(4), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert torch.equal(together.snapshot().parameters, apart.snapshot().parameters)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_models_live_in_the_slots_of_their_lane(prefetch: int) -> None:
    """As on the CPU in float32: what arrives is in the model before anybody has copied it."""
    rig = Rig("fp32", seen=(True,), prefetch=prefetch)
    for slot, model in enumerate(rig.workers[0].laned.models):
        rig.workers[0].send(rig.shards, slot, *rig.sent(0, slot))
        rig.advance(slot, readers=("worker0",), into=slot)
        assert torch.equal(model.parameters, rig.snapshot().parameters)
    assert slot == prefetch


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("slot", [0, None], ids=["with an update", "without"])
def test_each_reader_gets_the_parameters_as_far_ahead_as_it_will_be_late(
    wire: Wire, slot: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psys.ps.store._PIECE", 5008)  # of which a slice has many, and a part of one
    rig = Rig(wire, seen=(True, False, True))
    rig.train(2)
    if slot is not None:
        for number, worker in enumerate(rig.workers):
            worker.send(rig.shards, slot, *rig.sent(number, 2))
    drifts = (0.4, 0.4, 0.0)
    rig.advance(slot, readers=tuple(worker.name for worker in rig.workers), drift=drifts)
    after = rig.snapshot()
    assert after.version == (2 if slot is None else 3)
    got = rig.receive(0)
    codec = parameter_codec(wire)
    for (parameters, statistics), drift in zip(got, drifts, strict=True):
        for shard in rig.shards:
            state, part = shard.state().wait(), shard.layout.slices[rig.shards.index(shard)]
            ahead = state.parameters - drift * state.optimizer["momentum"]
            payload = torch.zeros(codec.nbytes(len(ahead)), dtype=torch.uint8)
            codec.encode(ahead, payload)
            # A sum that is rounded once or twice may round to the other neighbour on its way.
            expected = codec.decode(payload, torch.empty(len(ahead)))
            torch.testing.assert_close(
                parameters[part], expected, rtol=2**-7 if wire in ("bf16", "fp16") else 1e-6, atol=1e-6
            )
        assert torch.equal(statistics, after.statistics)
    assert not torch.equal(got[0][0], got[2][0])
    assert torch.equal(got[0][0], got[1][0])


@pytest.mark.parametrize("wire", WIRES)
def test_cores_that_are_idle_take_part_and_change_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(cores: int) -> tuple[Snapshot, list[tuple[Tensor, Tensor]], int]:
        monkeypatch.setattr("psys.cluster.shard_server.available_cores", lambda: cores)
        rig = Rig(wire, seen=(True, True, False), servers=1)
        before = threading.active_count()
        got = rig.train(3)
        return rig.snapshot(), got, threading.active_count() - before

    monkeypatch.setattr("psys.ps.store._PIECE", 1008)  # of which there are 78: as many as 4 threads get their share
    one, its, alone = trained(1)
    three, theirs, helpers = trained(3)
    assert (alone, helpers) == (0, 2)
    assert torch.equal(one.parameters, three.parameters)
    assert all(torch.equal(ours[0], others[0]) for ours, others in zip(its, theirs, strict=True))


def test_what_goes_wrong_with_a_helper_is_told_when_nobody_writes_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psys.cluster.shard_server.available_cores", lambda: 2)
    monkeypatch.setattr("psys.ps.store._PIECE", 1008)
    rig = Rig("fp32", seen=(True,), servers=1)
    rig.workers[0].send(rig.shards, 0, *rig.sent(0, 0))
    main, both = threading.current_thread(), threading.Barrier(2)
    here: list[int] = []

    def piece_ahead(number: int, drift: float, out: Tensor) -> None:
        if not here:
            both.wait(60)  # each has a piece
        if threading.current_thread() is not main:
            raise ValueError("a piece is bad")
        here.append(number)

    monkeypatch.setattr(rig.shards[0]._store, "piece_ahead", piece_ahead)
    with pytest.raises(ValueError, match="a piece is bad"):
        rig.advance(0, readers=("worker0",))
    assert len(here) == len(rig.shards[0]._store.pieces) - 1  # the others were done
    for call in (lambda: rig.shards[0].advance([Advance(0, (), {}, ())]), rig.shards[0].snapshot, rig.shards[0].state):
        with pytest.raises(AssertionError, match="a step before failed on its way"):
            call()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("released", [False, True])
def test_steps_that_come_together_are_as_one_after_the_other(wire: Wire, released: bool) -> None:
    def trained(at_once: bool) -> tuple[Snapshot, list[tuple[Tensor, Tensor]]]:
        rig = Rig(wire, seen=(True, False, True))
        updates = []
        for number, worker in enumerate(rig.workers):
            worker.send(rig.shards, 0, *rig.sent(number, 0))
            lease = Lease(number, 0, worker.name, number, 0)
            updates.append(Update(1 + number, (lease,), (1.0,), (0,), RATE, STATISTICS_SHARE, 0.0))
        # The first reads where the gradient was, the others the version after it, of which one has left meanwhile.
        gone = ("worker2",) if released else ()
        steps = [
            Advance(0, (updates[0],), {"worker0": Reader(0, 0.1)}, ()),
            Advance(1, (updates[1], updates[2]), {"worker1": Reader(0, 0.2)}, gone),
            Advance(2, (), {"worker0": Reader(1, 0.0)}, ()),
        ]
        for shard in rig.shards:
            for together in [steps] if at_once else [[step] for step in steps]:
                shard.advance(together).wait()
        return rig.snapshot(), [*rig.receive(0)[:2], rig.receive(1)[0]]

    (one, its), (other, theirs) = trained(at_once=True), trained(at_once=False)
    assert all(map(torch.equal, one[1:], other[1:]))
    assert all(all(map(torch.equal, *pair)) for pair in zip(its, theirs, strict=True))
    assert not any(map(torch.equal, its[0], its[1]))


@pytest.mark.parametrize("wire", WIRES)
def test_two_updates_of_one_step_are_those_of_two(wire: Wire) -> None:
    def trained(in_one: bool) -> tuple[Snapshot, list[tuple[Tensor, Tensor]]]:
        rig = Rig(wire, seen=(True, False))
        updates = []
        for number, worker in enumerate(rig.workers):
            worker.send(rig.shards, 0, *rig.sent(number, 0))
            lease = Lease(number, 0, worker.name, number, 0)
            updates.append(Update(1 + number, (lease,), (1.0,), (0,), RATE, STATISTICS_SHARE, 0.0))
        reading = {worker.name: Reader(0, 0.1) for worker in rig.workers}
        one = [Advance(0, tuple(updates), reading, ())]
        two = [Advance(0, (updates[0],), {}, ()), Advance(1, (updates[1],), reading, ())]
        for shard in rig.shards:
            shard.advance(one if in_one else two).wait()
        return rig.snapshot(), rig.receive(0)

    (one, its), (other, theirs) = trained(in_one=True), trained(in_one=False)
    assert all(map(torch.equal, one[1:], other[1:]))
    assert all(all(map(torch.equal, *pair)) for pair in zip(its, theirs, strict=True))


def test_only_readers_are_written_to_and_only_where_they_read() -> None:
    rig = Rig("fp32", seen=(True, False))
    before = rig.receive(1)
    for worker in rig.workers:
        worker.send(rig.shards, 0, *rig.sent(0, 0))
    rig.advance(0, readers=("worker1",), into=1)
    first, second = rig.receive(1)
    assert torch.equal(first[0], before[0][0])
    assert torch.equal(second[0], rig.snapshot().parameters)
    rig.advance(None, readers=("worker0",), into=0)
    assert torch.equal(rig.receive(1)[0][0], before[0][0])
    assert torch.equal(rig.receive(0)[0][0], rig.snapshot().parameters)


def test_what_was_received_stays_while_later_versions_are_made() -> None:
    rig = Rig("fp32", seen=(True, False))
    first = rig.train(2)  # into slot 1
    for step in range(2, 5):
        for worker in rig.workers:
            worker.send(rig.shards, 0, *rig.sent(0, step))
        rig.advance(0)
    for now, then in zip(rig.receive(1), first, strict=True):
        assert torch.equal(now[0], then[0])
        assert torch.equal(now[1], then[1])
    assert not torch.equal(rig.snapshot().parameters, first[0][0])


def test_steps_are_taken_in_their_order_only() -> None:
    shard = Rig("fp32", seen=(True,), servers=1).shards[0]
    with pytest.raises(AssertionError, match="step 1 came instead of 0"):
        shard.advance([Advance(1, (), {}, ())])
    shard.advance([Advance(0, (), {}, ())])
    with pytest.raises(AssertionError, match="step 0 came instead of 1"):
        shard.advance([Advance(0, (), {}, ())])


def test_a_released_lane_is_closed_and_opened_again_when_its_worker_comes_back() -> None:
    rig = Rig("fp32", seen=(True, True), servers=1)
    rig.train(1)
    before = lanes_open()
    rig.advance(None, released=("worker0", "worker1", "never heard of"))
    assert lanes_open() < before
    rig.advance(None, readers=("worker0", "worker1"))
    again = rig.train(2)
    assert lanes_open() == before
    assert torch.equal(again[0][0], rig.snapshot().parameters)


def test_a_worker_that_attaches_anew_has_a_new_lane() -> None:
    rig = Rig("fp32", seen=(True,))
    old = rig.workers[0]
    old.send(rig.shards, 0, torch.ones(rig.numel), torch.zeros(rig.numel_of_statistics))
    config = RunConfig(model="resnet8", mode="sync", servers=2, prefetch=1)
    rig.workers = [Worker("worker0", config, seen=True)]
    rig.workers[0].attach(rig.shards)
    rig.workers[0].send(rig.shards, 0, torch.zeros(rig.numel), torch.zeros(rig.numel_of_statistics))
    rig.advance(0, readers=("worker0",))  # of a gradient of 0, with which only weight decay moves the parameters
    expected = ParameterStore(rig.initial, rig.numel, torch.zeros(0), OPTIMIZER)
    expected.apply([Contribution(torch.zeros(rig.numel), torch.zeros(0), 1)], RATE, 1)
    assert torch.equal(rig.receive(0)[0][0], expected.snapshot().parameters)
