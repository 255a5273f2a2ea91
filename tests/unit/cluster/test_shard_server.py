"""Shard servers with mapped and with copied worker buffers, in every wire format, without a transport."""

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from psys.cluster.shard_server import ShardServer
from psys.models.registry import build
from psys.ps.codec import Wire, gradient_codec, parameter_codec
from psys.ps.messages import Lease, Reader, Step, Update
from psys.ps.optimizer import OptimizerConfig
from psys.ps.slice import Slice
from psys.ps.store import Contribution, ParameterStore, SliceState
from psys.run.checkpoint import concatenate_states
from psys.run.config import RunConfig
from psys.transport.buffered_model import BufferedModel
from psys.transport.protocol import BufferAddress

RATE, STATISTICS_SHARE = 0.1, 0.75
OPTIMIZER = OptimizerConfig(weight_decay=1e-3)
WIRES = ["fp32", "bf16", "fp16", "topk"]


class Worker:
    def __init__(self, name: str, config: RunConfig, mapped: bool) -> None:
        self.name, self.model, self.mapped = name, BufferedModel(build("resnet8", 10), config), mapped
        self.address = self.model.buffer.address if mapped else BufferAddress(0, 0, b"")

    def attach(self, shards: list[ShardServer]) -> None:
        assert [shard.attach(self.name, self.address, shard.layout.nbytes) for shard in shards] == [self.mapped] * len(
            shards
        )

    def send(self, shards: list[ShardServer], slot: int, gradient: Tensor, statistics: Tensor) -> None:
        layout, buffer = self.model.buffer.layout, self.model.buffer
        self.model.models[slot].gradient.copy_(gradient)
        self.model.models[slot].statistics.copy_(statistics)
        self.model.send(slot)
        if not self.mapped:
            for shard, span in zip(shards, layout.gradient(slot), strict=True):
                for start in range(span.start, span.stop, 50_000):
                    shard.put(self.name, start, buffer.chunk(start, min(start + 50_000, span.stop)))
            span = layout.statistics(slot)
            shards[0].put(self.name, span.start, buffer.memory[span])

    def receive(self, shards: list[ShardServer], slot: int) -> tuple[Tensor, Tensor]:
        layout, buffer = self.model.buffer.layout, self.model.buffer
        if not self.mapped:
            parts = zip(shards, layout.parameters(slot), strict=True)
            for shard, span in [*parts, (shards[0], layout.statistics(slot))]:
                buffer.memory[span].copy_(shard.get(self.name, span.start, span.stop - span.start))
        self.model.receive(slot)
        return self.model.models[slot].parameters.clone(), self.model.models[slot].statistics.clone()


class Rig:
    """Servers of one run and their workers, all in this process."""

    def __init__(self, wire: Wire, mapped: tuple[bool, ...], servers: int = 2, prefetch: int = 1) -> None:
        config = RunConfig(model="resnet8", mode="sync", wire=wire, servers=servers, prefetch=prefetch)
        self.workers = [Worker(f"worker{number}", config, each) for number, each in enumerate(mapped)]
        model = self.workers[0].model.models[0]
        self.numel, self.numel_of_statistics = len(model.parameters), len(model.statistics)
        layout = config.buffer_layout(self.numel, self.numel_of_statistics)
        self.initial, statistics = draw(-1, self.numel), torch.zeros(self.numel_of_statistics)
        self.slices = [
            Slice(
                number,
                ParameterStore(
                    self.initial[part],
                    part.stop - part.start,
                    statistics if number == 0 else statistics[:0],
                    OPTIMIZER,
                ),
                wire,
                config.topk_share,
            )
            for number, part in enumerate(layout.slices)
        ]
        self.shards = [ShardServer(each, layout) for each in self.slices]
        self.steps = 0
        for worker in self.workers:
            worker.attach(self.shards)

    def advance(
        self,
        slot: int | None,
        readers: tuple[str, ...] = (),
        released: tuple[str, ...] = (),
        look_ahead: tuple[float, ...] = (),
        into: int = 0,
    ) -> None:
        """A step with an update of what all workers have put into `slot`, if one is given.

        The readers receive the parameters in the slot `into`, each moved by its `look_ahead`.
        """
        leases = tuple(Lease(self.steps, 0, worker.name, self.steps, slot or 0) for worker in self.workers)
        shares = tuple((1 + number) / sum(range(1 + len(leases))) for number in range(len(leases)))
        update = Update(
            self.steps + 1, leases, shares, (0,) * len(leases), RATE, STATISTICS_SHARE, 0.0, (1.0,) * len(leases)
        )
        reading = {
            name: Reader(into, far) for name, far in zip(readers, look_ahead or [0.0] * len(readers), strict=True)
        }
        step = Step(self.steps, () if slot is None else (update,), reading, released)
        for shard in self.shards:
            shard.advance([step]).wait()
        self.steps += 1

    def train(self, steps: int) -> list[tuple[Tensor, Tensor]]:
        """What the workers have after `steps` updates; they read into the slot of the gradient, or into another one."""
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

    def snapshot(self) -> SliceState:
        return concatenate_states([each.store.snapshot() for each in self.slices])


def draw(seed: int, numel: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed + 1))


def buffers_mapped() -> int:
    """Mappings of worker buffers in this process, on either side."""
    return Path("/proc/self/maps").read_text().count("/memfd:psys-worker-buffer")


@pytest.mark.parametrize("wire", WIRES)
def test_gradients_are_applied_and_readers_get_the_new_version(wire: Wire) -> None:
    rig = Rig(wire, mapped=(True, True, True))
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
        whole.update(contributions, RATE, STATISTICS_SHARE)
    expected = whole.snapshot()
    assert torch.equal(rig.snapshot().parameters, expected.parameters)
    assert torch.equal(rig.snapshot().statistics, expected.statistics)
    returning = parameter_codec(wire)
    payload = torch.zeros(returning.nbytes(rig.numel), dtype=torch.uint8)
    returning.encode(expected.parameters, payload)
    for parameters, statistics in got:
        # With fp16 each slice has a scale of its own.
        torch.testing.assert_close(
            parameters, returning.decode(payload, torch.empty(rig.numel)), rtol=1e-3 if wire == "fp16" else 0, atol=1e-9
        )
        assert torch.equal(statistics, expected.statistics)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("servers", [1, 3])
def test_copied_buffer_gives_the_same_bits_as_a_mapped_one(wire: Wire, servers: int) -> None:
    together = Rig(wire, mapped=(True, True), servers=servers)
    apart = Rig(wire, mapped=(True, False), servers=servers)
    for ours, theirs in zip(together.train(4), apart.train(4), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert torch.equal(together.snapshot().parameters, apart.snapshot().parameters)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_models_live_in_the_slots_of_their_buffer(prefetch: int) -> None:
    """On the CPU in float32 the parameters of a slot are those of its model: nothing is copied."""
    rig = Rig("fp32", mapped=(True,), prefetch=prefetch)
    for slot, model in enumerate(rig.workers[0].model.models):
        rig.workers[0].send(rig.shards, slot, *rig.sent(0, slot))
        rig.advance(slot, readers=("worker0",), into=slot)
        assert torch.equal(model.parameters, rig.snapshot().parameters)
    assert slot == prefetch


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("slot", [0, None], ids=["with an update", "without"])
def test_each_reader_gets_the_parameters_moved_by_its_look_ahead(
    wire: Wire, slot: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psys.ps.store._BLOCK", 5008)  # a slice has many blocks, the last of them smaller
    rig = Rig(wire, mapped=(True, False, True))
    rig.train(2)
    if slot is not None:
        for number, worker in enumerate(rig.workers):
            worker.send(rig.shards, slot, *rig.sent(number, 2))
    distances = (0.4, 0.4, 0.0)
    rig.advance(slot, readers=tuple(worker.name for worker in rig.workers), look_ahead=distances)
    after = rig.snapshot()
    assert after.version == (2 if slot is None else 3)
    got = rig.receive(0)
    codec = parameter_codec(wire)
    for (parameters, statistics), distance in zip(got, distances, strict=True):
        for shard in rig.shards:
            number = rig.shards.index(shard)
            state, part = rig.slices[number].store.state(), shard.layout.slices[number]
            ahead = state.parameters - distance * state.optimizer["momentum"]
            payload = torch.zeros(codec.nbytes(len(ahead)), dtype=torch.uint8)
            codec.encode(ahead, payload)
            # A sum may be rounded once or twice, and then differ in the last bit of the wire format.
            expected = codec.decode(payload, torch.empty(len(ahead)))
            torch.testing.assert_close(
                parameters[part], expected, rtol=2**-7 if wire in ("bf16", "fp16") else 1e-6, atol=1e-6
            )
        assert torch.equal(statistics, after.statistics)
    assert not torch.equal(got[0][0], got[2][0])
    assert torch.equal(got[0][0], got[1][0])


@pytest.mark.parametrize("wire", WIRES)
def test_idle_cores_help_and_the_bits_stay_the_same(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(cores: int) -> tuple[SliceState, list[tuple[Tensor, Tensor]], int]:
        monkeypatch.setattr("psys.cluster.shard_server.available_cores", lambda: cores)
        rig = Rig(wire, mapped=(True, True, False), servers=1)
        before = threading.active_count()
        got = rig.train(3)
        return rig.snapshot(), got, threading.active_count() - before

    monkeypatch.setattr("psys.ps.store._BLOCK", 1008)  # 78 blocks: enough for 4 threads
    one, its, alone = trained(1)
    three, theirs, helpers = trained(3)
    assert (alone, helpers) == (0, 2)
    assert torch.equal(one.parameters, three.parameters)
    assert all(torch.equal(ours[0], others[0]) for ours, others in zip(its, theirs, strict=True))


def test_error_of_a_helper_thread_is_raised_after_all_threads_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psys.cluster.shard_server.available_cores", lambda: 2)
    monkeypatch.setattr("psys.ps.store._BLOCK", 1008)
    rig = Rig("fp32", mapped=(True,), servers=1)
    rig.workers[0].send(rig.shards, 0, *rig.sent(0, 0))
    main, both = threading.current_thread(), threading.Barrier(2)
    here: list[int] = []

    def predict_block(number: int, distance: float, out: Tensor) -> None:
        if not here:
            both.wait(60)  # each thread has a block
        if threading.current_thread() is not main:
            raise ValueError("a block is bad")
        here.append(number)

    monkeypatch.setattr(rig.slices[0].store, "predict_block", predict_block)
    with pytest.raises(ValueError, match="a block is bad"):
        rig.advance(0, readers=("worker0",))
    assert len(here) == rig.slices[0].blocks - 1  # all other blocks were done
    for call in (lambda: rig.shards[0].advance([Step(0)]), lambda: rig.shards[0].kept(0)):
        with pytest.raises(AssertionError, match="an earlier step failed midway"):
            call()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("released", [False, True])
def test_steps_applied_together_equal_steps_in_turn(wire: Wire, released: bool) -> None:
    def trained(at_once: bool) -> tuple[SliceState, list[tuple[Tensor, Tensor]]]:
        rig = Rig(wire, mapped=(True, False, True))
        updates = []
        for number, worker in enumerate(rig.workers):
            worker.send(rig.shards, 0, *rig.sent(number, 0))
            lease = Lease(number, 0, worker.name, number, 0)
            updates.append(Update(1 + number, (lease,), (1.0,), (0,), RATE, STATISTICS_SHARE, 0.0, (1.0,)))
        # worker0 reads into the slot of its gradient, the others push one step later; worker2 may have left.
        gone = ("worker2",) if released else ()
        steps = [
            Step(0, (updates[0],), {"worker0": Reader(0, 0.1)}, ()),
            Step(1, (updates[1], updates[2]), {"worker1": Reader(0, 0.2)}, gone),
            Step(2, (), {"worker0": Reader(1, 0.0)}, ()),
        ]
        for shard in rig.shards:
            for together in [steps] if at_once else [[step] for step in steps]:
                shard.advance(together).wait()
        return rig.snapshot(), [*rig.receive(0)[:2], rig.receive(1)[0]]

    (one, its), (other, theirs) = trained(at_once=True), trained(at_once=False)
    assert all(map(torch.equal, one[1:3], other[1:3]))
    assert all(all(map(torch.equal, *pair)) for pair in zip(its, theirs, strict=True))
    assert not any(map(torch.equal, its[0], its[1]))


@pytest.mark.parametrize("wire", WIRES)
def test_two_updates_of_one_step_equal_two_steps(wire: Wire) -> None:
    def trained(in_one: bool) -> tuple[SliceState, list[tuple[Tensor, Tensor]]]:
        rig = Rig(wire, mapped=(True, False))
        updates = []
        for number, worker in enumerate(rig.workers):
            worker.send(rig.shards, 0, *rig.sent(number, 0))
            lease = Lease(number, 0, worker.name, number, 0)
            updates.append(Update(1 + number, (lease,), (1.0,), (0,), RATE, STATISTICS_SHARE, 0.0, (1.0,)))
        reading = {worker.name: Reader(0, 0.1) for worker in rig.workers}
        one = [Step(0, tuple(updates), reading, ())]
        two = [Step(0, (updates[0],), {}, ()), Step(1, (updates[1],), reading, ())]
        for shard in rig.shards:
            shard.advance(one if in_one else two).wait()
        return rig.snapshot(), rig.receive(0)

    (one, its), (other, theirs) = trained(in_one=True), trained(in_one=False)
    assert all(map(torch.equal, one[1:3], other[1:3]))
    assert all(all(map(torch.equal, *pair)) for pair in zip(its, theirs, strict=True))


def test_only_the_slots_of_readers_are_written() -> None:
    rig = Rig("fp32", mapped=(True, False))
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


def test_received_parameters_stay_while_later_versions_are_made() -> None:
    rig = Rig("fp32", mapped=(True, False))
    first = rig.train(2)  # into slot 1
    for step in range(2, 5):
        for worker in rig.workers:
            worker.send(rig.shards, 0, *rig.sent(0, step))
        rig.advance(0)
    for now, then in zip(rig.receive(1), first, strict=True):
        assert torch.equal(now[0], then[0])
        assert torch.equal(now[1], then[1])
    assert not torch.equal(rig.snapshot().parameters, first[0][0])


@pytest.mark.parametrize("first", [(), (0,)])
def test_steps_out_of_order_are_refused(first: tuple[int, ...]) -> None:
    shard = Rig("fp32", mapped=(True,), servers=1).shards[0]
    for number in first:
        shard.advance([Step(number)])
    wrong = 0 if first else 1
    with pytest.raises(AssertionError, match=f"step {wrong} came instead of {1 - wrong}"):
        shard.advance([Step(wrong)])


def test_released_buffer_is_unmapped_and_mapped_again_when_its_worker_returns() -> None:
    rig = Rig("fp32", mapped=(True, True), servers=1)
    rig.train(1)
    before = buffers_mapped()
    rig.advance(None, released=("worker0", "worker1", "unknown"))
    assert buffers_mapped() < before
    rig.advance(None, readers=("worker0", "worker1"))
    again = rig.train(2)
    assert buffers_mapped() == before
    assert torch.equal(again[0][0], rig.snapshot().parameters)


def test_worker_that_attaches_another_buffer_replaces_the_first() -> None:
    rig = Rig("fp32", mapped=(True,))
    old = rig.workers[0]
    old.send(rig.shards, 0, torch.ones(rig.numel), torch.zeros(rig.numel_of_statistics))
    config = RunConfig(model="resnet8", mode="sync", servers=2, prefetch=1)
    rig.workers = [Worker("worker0", config, mapped=True)]
    rig.workers[0].attach(rig.shards)
    rig.workers[0].send(rig.shards, 0, torch.zeros(rig.numel), torch.zeros(rig.numel_of_statistics))
    rig.advance(0, readers=("worker0",))  # the gradient is 0: only weight decay moves the parameters
    expected = ParameterStore(rig.initial, rig.numel, torch.zeros(0), OPTIMIZER)
    expected.update([Contribution(torch.zeros(rig.numel), torch.zeros(0), 1)], RATE, 1)
    assert torch.equal(rig.receive(0)[0][0], expected.snapshot().parameters)
