"""What servers do to late gradients, compared with the formulas of the papers in double precision."""

from collections import defaultdict
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from psys.ps.codec import Codec, Wire, gradient_codec, parameter_codec
from psys.ps.compensation import CompensationConfig
from psys.ps.messages import Lease, Reader, Step, Update
from psys.ps.optimizer import OptimizerConfig
from psys.ps.partition import partition
from psys.ps.slice import Slice
from psys.ps.slots import BufferLayout, Slot, slots_in
from psys.ps.store import Contribution, ParameterStore
from psys.run.config import RunConfig

NUMEL, DECAYED, DECAY = 1003, 700, 1e-3
HIGHEST = 0.2
SGD = OptimizerConfig(weight_decay=DECAY)
DANA = OptimizerConfig(weight_decay=DECAY, momentum_per_worker=True)
NO_MOMENTUM = OptimizerConfig(momentum=0, nesterov=False, weight_decay=DECAY)
COMPENSATIONS = {
    "power": CompensationConfig(staleness_power=1),
    "constant": CompensationConfig(delay="constant", delay_strength=0.5),
    "adaptive": CompensationConfig(delay="adaptive"),
    "gap-aware": CompensationConfig(gap_aware=True),
    "all": CompensationConfig(staleness_power=0.5, delay="adaptive", gap_aware=True),
}
Vector = np.ndarray


def draw(seed: int, numel: int = NUMEL) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


class InDoublePrecision:
    """SGD with the formulas of docs/compensation.md, written down once more, for the whole vector."""

    def __init__(self, initial: Tensor, optimizer: OptimizerConfig, compensation: CompensationConfig) -> None:
        self.parameters = initial.double().numpy()
        self.optimizer, self.compensation = optimizer, compensation
        self.momentum: defaultdict[str, Vector] = defaultdict(lambda: np.zeros(NUMEL))
        self.gradient_squares, self.momentum_squares = np.zeros(NUMEL), np.zeros(NUMEL)
        self.updates = 0

    def update(self, worker: str, gradients: list[tuple[Tensor, float, int, Vector]], rate: float) -> None:
        """Rows of `gradients`: gradient, share, staleness, the parameters that were read."""
        config = self.compensation
        mean = np.zeros(NUMEL)
        for gradient, share, staleness, read in gradients:
            g = gradient.double().numpy()
            self.gradient_squares = 0.95 * self.gradient_squares + 0.05 * g**2
            move = self.parameters - read if staleness else np.zeros(NUMEL)
            if config.delay == "constant":
                g = g + config.strength * g * g * move
            if config.delay == "adaptive":
                g = g + config.strength / np.sqrt(self.gradient_squares + 1e-7) * g * g * move
            if config.gap_aware and staleness:
                mean_of_squares = self.momentum_squares / (1 - 0.999**self.updates)
                g = g / (1 + abs(move) / (HIGHEST * (np.sqrt(mean_of_squares) + 1e-8)))
            mean = mean + share * g * max(1, staleness) ** -config.staleness_power
        undecayed, mean = mean, mean + DECAY * self.parameters * (np.arange(NUMEL) < DECAYED)
        name = worker if self.optimizer.momentum_per_worker else "all"
        v = self.momentum[name] = self.optimizer.momentum * self.momentum[name] + mean
        self.momentum_squares = (
            0.999 * self.momentum_squares + 0.001 * (v if self.optimizer.momentum else undecayed) ** 2
        )
        self.parameters = self.parameters - rate * (
            mean + self.optimizer.momentum * v if self.optimizer.nesterov else v
        )
        self.updates += 1


def check_close(parameters: Tensor, expected: InDoublePrecision) -> None:
    """Up to rounding. Where the momentum vector is almost 0, the gap is a ratio of two rounding errors."""
    difference, moved = parameters.numpy() - expected.parameters, expected.parameters - draw(0).numpy()
    assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(moved)


@pytest.mark.parametrize(
    ("power", "share", "staleness", "progress", "expected"),
    [
        (0.0, 0.0, 7, 0.5, 1.0),
        (1.0, 0.0, 0, 0.5, 1.0),
        (1.0, 0.0, 1, 0.5, 1.0),
        (1.0, 0.0, 4, 0.5, 0.25),
        (0.5, 0.0, 4, 1.0, 0.5),
        (2.0, 0.0, 4, 0.0, 1 / 16),
        (1.0, 0.25, 4, 0.0, 0.25),
        (1.0, 0.25, 4, 0.125, 0.5),
        (1.0, 0.25, 4, 0.25, 1.0),
        (1.0, 0.25, 4, 0.9, 1.0),
    ],
)
def test_damping_is_a_power_of_the_staleness(
    power: float, share: float, staleness: int, progress: float, expected: float
) -> None:
    config = CompensationConfig(staleness_power=power, anneal_share=share)
    assert config.damping(staleness, progress) == pytest.approx(expected)


@given(power=st.floats(0.01, 2), share=st.floats(0, 1), staleness=st.integers(0, 10_000), progress=st.floats(0, 1))
def test_damping_never_amplifies_and_later_gradients_count_no_more(
    power: float, share: float, staleness: int, progress: float
) -> None:
    config = CompensationConfig(staleness_power=power, anneal_share=share)
    assert 0 < config.damping(staleness + 1, progress) <= config.damping(staleness, progress) <= 1
    assert config.damping(0, progress) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compensation": {"delay_strength": 0.1}}, "'delay_strength' needs 'delay' constant or adaptive"),
        ({"compensation": {"anneal_share": 0.5}}, "'anneal_share' needs 'staleness_power' above 0"),
        ({"compensation": {"delay": "constant"}, "local_steps": 2}, "'compensation.delay' needs 'local_steps' 1"),
        ({"compensation": {"staleness_power": 3}}, "less than or equal to 2"),
        (
            {"compensation": {"gap_aware": True}, "optimizer": {"kind": "adam"}},
            "'compensation.gap_aware' needs 'optimizer.kind' sgd, not adam",
        ),
        (
            {"optimizer": {"momentum_per_worker": True, "nesterov": False}},
            "'momentum_per_worker' needs 'kind' sgd with 'nesterov'",
        ),
        (
            {"optimizer": {"momentum_per_worker": True}, "mode": "ssp"},
            "'optimizer.momentum_per_worker' needs 'mode' async, not ssp",
        ),
        (
            {"optimizer": {"momentum_per_worker": True}, "sync_epochs": 1},
            "'optimizer.momentum_per_worker' needs 'sync_epochs' 0",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(settings)


@pytest.mark.parametrize("optimizer", [SGD, NO_MOMENTUM], ids=["momentum", "no momentum"])
@pytest.mark.parametrize("name", COMPENSATIONS)
def test_update_of_several_late_gradients_follows_the_formulas(name: str, optimizer: OptimizerConfig) -> None:
    compensation = COMPENSATIONS[name]
    store = ParameterStore(draw(0), DECAYED, torch.zeros(0), optimizer, compensation, HIGHEST)
    expected = InDoublePrecision(draw(0), optimizer, compensation)
    versions = [draw(0)]
    for step in range(12):
        late, later = min(step, 2), min(step, 5)
        rows = [
            (draw(10 * step + 1), 0.25, late, versions[step - late]),
            (draw(10 * step + 2), 0.75, later, versions[step - later]),
        ]
        store.update(
            [
                Contribution(
                    gradient.clone(),
                    torch.zeros(0),
                    share,
                    compensation.damping(staleness, 0),
                    read=read if staleness and compensation.needs_reads else None,
                )
                for gradient, share, staleness, read in rows
            ],
            0.05,
            1.0,
        )
        expected.update("", [(g, share, staleness, read.double().numpy()) for g, share, staleness, read in rows], 0.05)
        versions.append(store.snapshot().parameters)
    check_close(store.parameters, expected)
    plain = ParameterStore(draw(0), DECAYED, torch.zeros(0), optimizer)
    for step in range(12):
        gradients = [(draw(10 * step + 1), 0.25), (draw(10 * step + 2), 0.75)]
        plain.update([Contribution(gradient, torch.zeros(0), share) for gradient, share in gradients], 0.05, 1.0)
    with pytest.raises(AssertionError):
        check_close(plain.parameters, expected)


def test_damping_does_not_move_the_running_statistics() -> None:
    found = []
    for damping in (1.0, 0.1):
        store = ParameterStore(draw(0), DECAYED, torch.zeros(2), SGD)
        gradients = [
            Contribution(draw(1), torch.ones(2), 0.5, damping),
            Contribution(draw(2), torch.ones(2), 0.5, damping),
        ]
        store.update(gradients, 0.05, 0.5)
        found.append(store.snapshot())
    assert torch.equal(found[0].statistics, found[1].statistics)
    assert not torch.equal(found[0].parameters, found[1].parameters)


class Rig:
    """Servers and workers without processes: each worker reads, and pushes what it read moved at random."""

    def __init__(
        self, optimizer: OptimizerConfig, compensation: CompensationConfig, wire: Wire = "fp32", servers: int = 1
    ) -> None:
        self.parts = partition(NUMEL, servers)
        self.layout = BufferLayout(self.parts, 0, slots=2, wire=wire, topk_share=0.3)
        self.slices = [
            Slice(
                number,
                ParameterStore(
                    draw(0)[part],
                    min(max(DECAYED - part.start, 0), part.stop - part.start),
                    torch.zeros(0),
                    optimizer,
                    compensation,
                    HIGHEST,
                ),
                wire,
                0.3,
            )
            for number, part in enumerate(self.parts)
        ]
        self.compensation, self.wire = compensation, wire
        self.look_ahead = 0.05 * optimizer.momentum_look_ahead(3)
        self.buffers: dict[str, list[Slot]] = {}
        self.leases: dict[str, Lease] = {}
        self.read: dict[str, Vector] = {}
        self.codecs: dict[str, list[Codec]] = {}
        self.steps = self.version = 0
        self.expected = InDoublePrecision(draw(0), optimizer, compensation)

    def gradients(self, worker: str) -> list[Slot]:
        return self.buffers[worker]

    parameters = gradients

    def release(self, worker: str) -> None:
        del self.buffers[worker]

    def advance(
        self, updates: tuple[Update, ...] = (), readers: tuple[str, ...] = (), gone: tuple[str, ...] = ()
    ) -> None:
        """One step of all servers; the readers read into the slot that their last lease has not."""
        found = {}
        for worker in readers:
            memory = torch.zeros(self.layout.nbytes, dtype=torch.uint8)
            self.buffers.setdefault(worker, list(slots_in(memory, self.layout)))
            self.codecs.setdefault(worker, [gradient_codec(self.wire, 0.3) for _ in self.parts])
            slot = 1 - self.leases[worker].slot if worker in self.leases else 0
            self.leases[worker] = Lease(self.steps, 0, worker, self.version, slot)
            found[worker] = Reader(slot, self.look_ahead)
        for each in self.slices:
            each.apply([Step(self.steps, updates, found, gone)], self)
        self.steps += 1
        for worker in readers:
            payloads = self.buffers[worker][self.leases[worker].slot].parameters
            vectors = [
                parameter_codec(self.wire).decode(payload, torch.empty(part.stop - part.start))
                for payload, part in zip(payloads, self.parts, strict=True)
            ]
            self.read[worker] = torch.cat(vectors).double().numpy()

    def push_pull(self, worker: str, seed: int, gone: tuple[str, ...] = ()) -> None:
        """The worker's gradient is the next update; then it reads, as the others whose buffers are not released."""
        lease, gradient = self.leases[worker], draw(seed)
        sent = []
        for codec, part, payload in zip(
            self.codecs[worker], self.parts, self.buffers[worker][lease.slot].gradient, strict=True
        ):
            codec.encode(gradient[part].clone(), payload)
            sent.append(codec.decode(payload, torch.empty(part.stop - part.start)).clone())
        staleness = self.version - lease.version
        self.expected.update(worker, [(torch.cat(sent), 1.0, staleness, self.read[worker])], 0.05)
        self.version += 1
        damping = self.compensation.damping(staleness, 0)
        update = Update(self.version, (lease,), (1.0,), (staleness,), 0.05, 1.0, 0.0, (damping,))
        self.advance((update,), (worker,), gone)

    def vector(self) -> Tensor:
        return torch.cat([each.store.parameters for each in self.slices])

    def random(self, seed: int, workers: int = 4, updates: int = 24) -> None:
        """Workers push in a random order."""
        names = tuple(f"worker{number}" for number in range(workers))
        self.advance(readers=names)
        for step, worker in enumerate(Random(seed).choices(names, k=updates)):
            self.push_pull(worker, 1000 * seed + step)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16", "topk"])
@pytest.mark.parametrize("optimizer", [SGD, DANA], ids=["SGD", "DANA"])
@pytest.mark.parametrize("name", [*COMPENSATIONS, "none"])
def test_servers_follow_the_formulas_with_what_each_worker_read(
    name: str, optimizer: OptimizerConfig, wire: Wire
) -> None:
    rig = Rig(optimizer, COMPENSATIONS.get(name, CompensationConfig()), wire)
    rig.random(seed=1)
    check_close(rig.vector(), rig.expected)


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [SGD, DANA], ids=["SGD", "DANA"])
@pytest.mark.parametrize("name", COMPENSATIONS)
def test_several_servers_and_many_blocks_equal_one_bit_for_bit(
    name: str, optimizer: OptimizerConfig, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Rig(optimizer, COMPENSATIONS[name], wire)
    one.random(seed=2, updates=20)
    monkeypatch.setattr("psys.ps.store._BLOCK", 64)
    several = Rig(optimizer, COMPENSATIONS[name], wire, servers=5)
    several.random(seed=2, updates=20)
    assert torch.equal(one.vector(), several.vector())


def test_delay_compensation_of_strength_0_equals_none_bit_for_bit_and_keeps_no_copies() -> None:
    plain = Rig(SGD, CompensationConfig())
    plain.random(seed=3)
    for delay in ("constant", "adaptive"):
        rig = Rig(SGD, CompensationConfig(delay=delay, delay_strength=0))
        rig.random(seed=3)
        assert torch.equal(rig.vector(), plain.vector())
        assert not rig.slices[0].store.needs_reads


@pytest.mark.parametrize("name", COMPENSATIONS)
def test_gradients_that_are_not_late_are_applied_as_they_are(name: str) -> None:
    """Even if the wire format rounds what is read."""
    plain, rig = Rig(SGD, CompensationConfig(), "bf16"), Rig(SGD, COMPENSATIONS[name], "bf16")
    for each in (plain, rig):
        each.random(seed=4, workers=1)
    assert torch.equal(rig.vector(), plain.vector())


def test_one_worker_with_its_momentum_vector_equals_nesterov_sgd_bit_for_bit_over_a_restore() -> None:
    def steps(rig: Rig, start: int, stop: int) -> None:
        rig.advance(readers=("worker0",))
        for step in range(start, stop):
            rig.push_pull("worker0", step)

    nesterov, dana, resumed = (
        Rig(SGD, CompensationConfig()),
        Rig(DANA, CompensationConfig()),
        Rig(DANA, CompensationConfig()),
    )
    steps(nesterov, 0, 20)
    steps(dana, 0, 10)
    resumed.slices[0].store.restore(dana.slices[0].store.state())
    steps(resumed, 10, 20)
    assert torch.equal(resumed.vector(), nesterov.vector())
    assert torch.equal(*(rig.slices[0].store.state().optimizer["momentum"] for rig in (resumed, nesterov)))


def test_new_worker_begins_with_the_mean_momentum_and_a_released_one_is_dropped() -> None:
    rig = Rig(DANA, COMPENSATIONS["all"])
    slice_, store = rig.slices[0], rig.slices[0].store
    rig.advance(readers=("a", "b"))
    rig.push_pull("a", 1)
    assert not store._momenta["b"].any()
    rig.push_pull("b", 2)
    a, b = (store._momenta[worker].clone() for worker in "ab")
    rig.advance(readers=("c",))
    assert torch.equal(store._momenta["c"], (a + b) / 2)
    assert torch.allclose(store.state().optimizer["momentum"], (a + b) / 2)
    rig.advance(gone=("a", "c"))
    assert torch.equal(store.state().optimizer["momentum"], b)
    assert (set(store._momenta), set(slice_._reads), set(rig.buffers)) == ({"b"}, {"b"}, {"b"})
    rig.advance(gone=("b",))
    assert torch.equal(store.state().optimizer["momentum"], b)
    rig.advance(readers=("d",))
    assert torch.equal(store._momenta["d"], b)


def test_restored_means_of_squares_continue_bit_for_bit() -> None:
    through = Rig(SGD, COMPENSATIONS["all"])
    through.random(seed=5)
    resumed = Rig(SGD, COMPENSATIONS["all"])
    state = through.slices[0].store.state()
    assert state.optimizer.keys() == {"momentum", "gradient_squares", "momentum_squares"}
    resumed.slices[0].store.restore(state)
    resumed.version = through.version
    for rig in (through, resumed):
        rig.advance(readers=("e", "f"))
        for step, worker in enumerate("effe"):
            rig.push_pull(worker, step)
    assert torch.equal(resumed.vector(), through.vector())
