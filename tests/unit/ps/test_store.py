import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from psys.ps.optimizer import OptimizerConfig
from psys.ps.partition import partition
from psys.ps.store import Contribution, ParameterStore

OPTIMIZERS = {
    "sgd": OptimizerConfig(kind="sgd", momentum=0.9, weight_decay=1e-3),
    "rmsprop": OptimizerConfig(kind="rmsprop", momentum=0.9, weight_decay=1e-3),
    "adam": OptimizerConfig(kind="adam", weight_decay=1e-3),
}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(numel=st.integers(1, 2000), servers=st.integers(1, 20))
def test_partition_covers_the_vector_in_balanced_slices_of_whole_cache_lines(numel: int, servers: int) -> None:
    if 16 * (servers - 1) >= numel:
        with pytest.raises(ValueError, match="slices"):
            partition(numel, servers)
        return
    slices = partition(numel, servers)
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(numel))
    assert all(s.start % 16 == 0 for s in slices)
    lengths = [s.stop - s.start for s in slices]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) < 32


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("servers", [2, 3])
@pytest.mark.parametrize("decayed", [0, 300, 700, 1001])
def test_slices_on_several_servers_equal_the_whole_on_one(kind: str, servers: int, decayed: int) -> None:
    initial, statistics = draw(0, 1001), torch.zeros(0)
    whole = ParameterStore(initial, decayed, statistics, OPTIMIZERS[kind])
    slices = partition(len(initial), servers)
    parts = [
        ParameterStore(initial[s], min(max(decayed - s.start, 0), s.stop - s.start), statistics, OPTIMIZERS[kind])
        for s in slices
    ]
    for step in range(5):
        gradients = [(draw(2 * step + i, 1001), share) for i, share in ((1, 1 / 3), (2, 2 / 3))]
        for store, s in ((whole, slice(None)), *zip(parts, slices, strict=True)):
            store.update([Contribution(of[s].clone(), statistics, share) for of, share in gradients], 0.05, 1.0)
    assert torch.equal(whole.snapshot().parameters, torch.cat([part.snapshot().parameters for part in parts]))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("decayed", [0, 100, 256, 1001])
def test_updates_applied_block_by_block_equal_whole_updates_in_turn(
    kind: str, decayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ParameterStore(draw(0, 1001), decayed, torch.zeros(2), OPTIMIZERS[kind])
    monkeypatch.setattr("psys.ps.store._BLOCK", 64)
    blocks = ParameterStore(draw(0, 1001), decayed, torch.zeros(2), OPTIMIZERS[kind])
    for first in (1, 4):
        steps, versions = [], []
        for step in range(first, first + 3):
            contribution = Contribution(draw(step, 1001), draw(step, 2), 1)
            steps.append(blocks.begin_update([contribution._replace(gradient=draw(step, 1001))], 0.05 / step, 0.5))
            whole.update([contribution], 0.05 / step, 0.5)
            versions.append(blocks.split(whole.parameters.clone()))
            assert blocks.version == whole.version
        for number in reversed(range(len(blocks.blocks))):
            for each, parameters in zip(steps, versions, strict=True):
                each(number)
                assert torch.equal(blocks.blocks[number].parameters, parameters[number])
        assert max(map(len, versions[0])) < 2 * 64
        assert all(map(torch.equal, blocks.snapshot()[1:3], whole.snapshot()[1:3]))


@pytest.mark.parametrize(
    ("kind", "implementation", "tolerance"),
    [
        ("sgd", {"fused": True}, 0),
        ("adam", {"fused": True}, 0),
        ("rmsprop", {"foreach": True}, 0),  # torch has no fused RMSProp
        ("sgd", {"foreach": False}, 1e-6),
        ("adam", {"foreach": False}, 1e-6),
        ("rmsprop", {"foreach": False}, 1e-6),
    ],
)
def test_flat_update_equals_torch_on_separate_tensors(
    kind: str, implementation: dict[str, bool], tolerance: float
) -> None:
    """Equal to the bit with the same implementation of torch; its fused and plain implementations round differently."""
    shapes = [(16, 3, 3, 3), (10, 64), (16,), (10,)]
    tensors = [nn.Parameter(draw(i, *shape)) for i, shape in enumerate(shapes)]
    flat = torch.cat([t.detach().flatten() for t in tensors])
    config = OPTIMIZERS[kind]
    store = ParameterStore(flat, 16 * 27 + 640, torch.zeros(0), config)
    groups = [
        {"params": tensors[:2], "weight_decay": config.weight_decay},
        {"params": tensors[2:], "weight_decay": 0.0},
    ]
    rule: torch.optim.Optimizer
    match kind:
        case "sgd":
            rule = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, **implementation)
        case "rmsprop":
            rule = torch.optim.RMSprop(groups, lr=0.05, alpha=0.99, momentum=0.9, **implementation)
        case _:
            rule = torch.optim.Adam(groups, lr=0.05, betas=(0.9, 0.99), **implementation)
    for step in range(10):
        for i, tensor in enumerate(tensors):
            tensor.grad = draw(100 * step + i, *tensor.shape)
        gradient = torch.cat([t.grad.flatten() for t in tensors if t.grad is not None])
        store.update([Contribution(gradient, torch.zeros(0), 1)], 0.05, 1.0)
        rule.step()
    expected = torch.cat([t.detach().flatten() for t in tensors])
    torch.testing.assert_close(store.snapshot().parameters, expected, atol=tolerance, rtol=tolerance)


@given(momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]), nesterov=st.booleans(), updates=st.integers(0, 30))
@settings(deadline=None)
def test_look_ahead_predicts_the_effect_of_momentum_and_of_a_gradient(
    momentum: float, nesterov: bool, updates: int
) -> None:
    rate, nothing = 0.05, torch.zeros(0)
    config = OptimizerConfig(momentum=momentum, nesterov=nesterov and momentum > 0)

    def moved(first: torch.Tensor, steps: int) -> torch.Tensor:
        """Parameters after 3 updates and `steps` more: one of the gradient `first`, the others of zeros."""
        store = ParameterStore(draw(0, 40), 0, nothing, config)
        for step in range(3):
            store.update([Contribution(draw(1 + step, 40), nothing, 1)], rate, 1.0)
        predicted.append(
            store.predicted(rate * config.momentum_look_ahead(steps), torch.empty(40)) if momentum else None
        )
        for step in range(steps):
            store.update([Contribution(first.clone() if step == 0 else torch.zeros(40), nothing, 1)], rate, 1.0)
        return store.snapshot().parameters

    predicted: list[torch.Tensor | None] = []
    by_momentum, by_gradient = moved(torch.zeros(40), updates), moved(draw(9, 40), updates)
    if momentum:
        torch.testing.assert_close(predicted[0], by_momentum, atol=1e-5, rtol=1e-5)
    if updates:
        torch.testing.assert_close(
            by_momentum - rate * config.gradient_look_ahead(updates) * draw(9, 40), by_gradient, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    "config", [*(OPTIMIZERS[kind] for kind in ("rmsprop", "adam")), OptimizerConfig(look_ahead=False)]
)
def test_no_look_ahead_with_other_optimizers_or_if_switched_off(config: OptimizerConfig) -> None:
    assert (config.momentum_look_ahead(5), config.gradient_look_ahead(5)) == (0, 0)


@pytest.mark.parametrize("look_ahead", [0.0, 0.3])
def test_predicted_blocks_equal_the_predicted_whole(look_ahead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psys.ps.store._BLOCK", 30)
    store = ParameterStore(draw(0, 100), 50, torch.zeros(0), OptimizerConfig())
    store.update([Contribution(draw(1, 100), torch.zeros(0), 1)], 0.1, 1.0)
    whole, blocks = store.predicted(look_ahead, torch.empty(100)), torch.empty(100)
    for number, block in enumerate(store.split(blocks)):
        store.predict_block(number, look_ahead, block)
    assert torch.equal(blocks, whole)
    assert torch.equal(whole, store.snapshot().parameters) == (look_ahead == 0)


def test_snapshot_never_changes() -> None:
    store = ParameterStore(draw(0, 100), 50, draw(1, 10), OptimizerConfig())
    snapshot = store.snapshot()
    before = snapshot.parameters.clone(), snapshot.statistics.clone()
    store.update([Contribution(draw(2, 100), draw(3, 10), 1)], 0.1, 1.0)
    assert torch.equal(snapshot.parameters, before[0])
    assert torch.equal(snapshot.statistics, before[1])
    assert store.snapshot().version == 1
    assert not torch.equal(store.snapshot().parameters, before[0])


def test_contributions_are_weighted_by_their_shares() -> None:
    store = ParameterStore(torch.zeros(4), 4, torch.zeros(2), OptimizerConfig(momentum=0, nesterov=False))
    first = torch.empty(4)

    def contributions() -> list[Contribution]:
        return [
            Contribution(first.fill_(1), torch.full((2,), 4.0), share=0.5),
            Contribution(torch.full((4,), 5.0), torch.full((2,), 8.0), share=0.25),
            Contribution(torch.full((4,), 9.0), torch.full((2,), 12.0), share=0.25),
        ]

    store.update(contributions(), learning_rate=1.0, statistics_share=1.0)
    assert torch.equal(store.snapshot().parameters, torch.full((4,), -4.0))
    assert torch.equal(store.snapshot().statistics, torch.full((2,), 7.0))
    store.update(contributions(), learning_rate=1.0, statistics_share=0.5)
    assert torch.equal(store.snapshot().parameters, torch.full((4,), -8.0))
    assert torch.equal(store.snapshot().statistics, torch.full((2,), 7.0))
    store.update([Contribution(first.fill_(0), torch.full((2,), 8.0), 1)], learning_rate=1.0, statistics_share=0.5)
    assert torch.equal(store.snapshot().statistics, torch.full((2,), 7.5))


def stepped(store: ParameterStore, steps: range) -> None:
    """Apply updates that depend on their number only."""
    for step in steps:
        gradients = [draw(100 * step + i, len(store.parameters)) for i in range(2)]
        statistics = draw(100 * step + 2, len(store.statistics))
        store.update([Contribution(gradient, statistics, 0.5) for gradient in gradients], 0.05, 0.5)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_restored_store_continues_bit_for_bit(kind: str) -> None:
    through = ParameterStore(draw(0, 101), 70, draw(1, 10), OPTIMIZERS[kind])
    stepped(through, range(3))
    state = through.state()
    stepped(through, range(3, 6))  # must not change the state
    resumed = ParameterStore(torch.zeros(101), 70, torch.zeros(10), OPTIMIZERS[kind])
    before = resumed.snapshot()
    resumed.restore(state)
    assert (resumed.version, resumed.snapshot().version, before.version) == (3, 3, 0)
    stepped(resumed, range(3, 6))
    one, other = through.state(), resumed.state()
    assert one.version == other.version == 6
    assert torch.equal(one.parameters, other.parameters)
    assert torch.equal(one.statistics, other.statistics)
    assert one.optimizer.keys() == other.optimizer.keys()
    assert all(torch.equal(vector, other.optimizer[name]) for name, vector in one.optimizer.items())
    assert torch.equal(resumed.snapshot().parameters, one.parameters)


@pytest.mark.parametrize(
    "other",
    [
        ParameterStore(torch.ones(99), 50, torch.ones(10), OPTIMIZERS["sgd"]),
        ParameterStore(torch.ones(100), 50, torch.ones(11), OPTIMIZERS["sgd"]),
        ParameterStore(torch.ones(100), 50, torch.ones(10), OPTIMIZERS["adam"]),
        ParameterStore(torch.ones(100), 50, torch.ones(10), OptimizerConfig(momentum=0, nesterov=False)),
    ],
    ids=["parameters", "statistics", "another optimizer", "no momentum"],
)
def test_state_of_another_model_or_optimizer_is_refused_and_changes_nothing(other: ParameterStore) -> None:
    store = ParameterStore(torch.zeros(100), 50, torch.zeros(10), OPTIMIZERS["sgd"])
    with pytest.raises(ValueError, match="of another model or optimizer: it has parameters"):
        store.restore(other.state())
    assert not store.parameters.any()
    assert not store.statistics.any()
    assert store.version == 0
