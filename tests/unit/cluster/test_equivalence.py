"""What the modes promise, on real images and a real network; gradients computed as workers do, in one process."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psys.augment.batch import AugmentConfig, augment
from psys.cluster.config import RunConfig
from psys.cluster.worker import BatchGradient
from psys.compute.flat import FlatModel
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.models.registry import build
from psys.ps.coordinator import Coordinator, Decision
from psys.ps.ledger import Lease, Ledger, batch_seed, samples_of
from psys.ps.policy import make_policy
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import OptimizerConfig, ParameterStore, Snapshot

RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-3
CPU = torch.device("cpu")


def settings(**changes: object) -> RunConfig:
    usual = {
        "model": "resnet8",
        "epochs": 100,
        "batch_size": 8,
        "precision": "fp32",
        "validation_share": 0.0,
        "augment": AugmentConfig(views=2, cutout_size=8, foreground_share=0.25),
        "optimizer": OptimizerConfig(momentum=MOMENTUM, nesterov=True, weight_decay=DECAY),
        "schedule": ScheduleConfig(kind="constant", learning_rate=RATE),
    }
    return RunConfig(**{**usual, **changes})


def fresh_module(config: RunConfig) -> nn.Module:
    torch.manual_seed(config.seed)
    return build(config.model, 10)


def module_with_statistics(config: RunConfig, data: PreparedStore) -> nn.Module:
    """Fresh parameters, with the running statistics of one real batch."""
    module = fresh_module(config)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(views_of(config, data, 0)[0])
    return module


class FrozenNormBatchGradient(BatchGradient):
    """Batch norm uses its running statistics in training too, so that a batch's gradient is the mean of its images'."""

    def __init__(self, config: RunConfig, store: PreparedStore) -> None:
        super().__init__(config, store, CPU)
        for module in self.model.module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
                module.training = False


def drive(
    config: RunConfig,
    compute: BatchGradient,
    workers: int,
    updates: int,
    shuffle: random.Random | None = None,
    module: nn.Module | None = None,
) -> Snapshot:
    """`updates` updates of a cluster of `workers`, of which a random one finishes next if `shuffle` is given."""
    model = FlatModel(module or fresh_module(config))
    store = ParameterStore(model.parameters, model.decayed, model.statistics, config.optimizer)
    ledger = Ledger(config.epochs, compute.samples, config.batch_size)
    policy = make_policy(config.mode, config.staleness)
    coordinator = Coordinator(ledger, policy, store, config.schedule, config.epochs, awaited=workers)
    computing: dict[str, tuple[Lease, Snapshot]] = {}

    def follow(decision: Decision) -> None:
        for worker, lease in decision.grants.items():
            assert lease is not None
            computing[worker] = (lease, store.snapshot())

    for number in range(workers):
        follow(coordinator.request(f"worker{number}"))
    while store.version < updates:
        worker = shuffle.choice(sorted(computing)) if shuffle else min(computing)
        push = compute(*computing.pop(worker))
        follow(coordinator.push(push.lease, push.gradient.clone(), push.statistics.clone())[1])
        if store.version < updates:
            follow(coordinator.request(worker))
    return store.snapshot()


def views_of(config: RunConfig, data: PreparedStore, batch: int) -> tuple[Tensor, Tensor]:
    """The augmented batch, made without any class of the cluster."""
    split = data.split("train")
    chosen, _ = holdout(split.labels, config.validation_share, config.seed)
    rows = chosen[samples_of(batch, len(chosen), config.batch_size, config.seed).numpy()]
    columns = [torch.tensor(column[rows]) for column in split]
    generator = torch.Generator().manual_seed(batch_seed(config.seed, batch, stream=1))
    return augment(*columns, config.augment, data.channel_mean, data.channel_std, generator)


def plain_torch(module: nn.Module, rate: float = RATE) -> torch.optim.SGD:
    groups = [
        {"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in module.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True)


def test_async_with_one_worker_is_plain_torch_training_bit_for_bit(small_store: PreparedStore) -> None:
    config = settings(mode="async")
    got = drive(config, BatchGradient(config, small_store, CPU), workers=1, updates=20)
    module = fresh_module(config).train()
    optimizer = plain_torch(module)
    for batch in range(20):
        views, targets = views_of(config, small_store, batch)
        optimizer.zero_grad()
        F.cross_entropy(module(views), targets).backward()
        optimizer.step()
    expected = FlatModel(module)
    assert torch.equal(got.parameters, expected.parameters)
    assert torch.equal(got.statistics, expected.statistics)


def test_sync_over_two_workers_is_one_process_with_the_doubled_batch(small_store: PreparedStore) -> None:
    # One activation that rounds to the other side of ReLU's kink moves a parameter by about a thousandth of the rate:
    # the rate is such that 1e-5 tells a wrong average from rounding.
    rate = 1e-3
    config = settings(mode="sync", batch_size=16, schedule=ScheduleConfig(kind="constant", learning_rate=rate))
    compute = FrozenNormBatchGradient(config, small_store)
    got = drive(config, compute, workers=2, updates=20, module=module_with_statistics(config, small_store))
    module = module_with_statistics(config, small_store).eval()
    before = FlatModel(copy.deepcopy(module)).parameters
    optimizer = plain_torch(module, rate)
    for update in range(20):
        halves = [views_of(config, small_store, batch) for batch in (2 * update, 2 * update + 1)]
        views, targets = (torch.cat(parts) for parts in zip(*halves, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(module(views), targets).backward()
        optimizer.step()
    expected = FlatModel(module).parameters
    torch.testing.assert_close(got.parameters, expected, atol=1e-5, rtol=0)
    assert (expected - before).abs().max() > 1e-2  # it did train


def test_sync_with_batch_norm_is_one_process_with_ghost_batches(small_store: PreparedStore) -> None:
    """Each half is normalised by itself; the running statistics are the mean of the halves' (Hoffer et al. 2017)."""
    config = settings(mode="sync")
    got = drive(config, BatchGradient(config, small_store, CPU), workers=2, updates=20)
    model = FlatModel(fresh_module(config).train())
    optimizer = plain_torch(model.module)
    for update in range(20):
        before, after = model.statistics.clone(), []
        optimizer.zero_grad(set_to_none=False)
        for batch in (2 * update, 2 * update + 1):
            model.statistics.copy_(before)
            views, targets = views_of(config, small_store, batch)
            (F.cross_entropy(model.module(views), targets) / 2).backward()
            after.append(model.statistics.clone())
        model.statistics.copy_((after[0] + after[1]) / 2)
        optimizer.step()
    assert torch.equal(got.parameters, model.parameters)
    assert torch.equal(got.statistics, model.statistics)


def test_images_held_out_are_never_trained_on(small_store: PreparedStore) -> None:
    """A whole epoch of gradients stays the same when every held-out image is painted over."""
    config = settings(validation_share=0.25, batch_size=30, epochs=1)
    compute = BatchGradient(config, small_store, CPU)
    _, held = holdout(small_store.split("train").labels, 0.25, config.seed)
    assert (compute.samples, len(held)) == (120, 40)
    model = FlatModel(fresh_module(config))
    snapshot = Snapshot(0, model.parameters.clone(), model.statistics.clone())
    before = [compute(Lease(batch, 0, "w", 0), snapshot).gradient.clone() for batch in range(4)]
    painted = np.array(compute._split.images)
    painted[held] = 255
    compute._split = compute._split._replace(images=painted)
    after = [compute(Lease(batch, 0, "w", 0), snapshot).gradient.clone() for batch in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    painted[:] = 255
    assert not torch.equal(compute(Lease(0, 0, "w", 0), snapshot).gradient, before[0])


def test_sync_does_not_depend_on_who_computes_what_or_comes_first(small_store: PreparedStore) -> None:
    config = settings(mode="sync")
    compute = BatchGradient(config, small_store, CPU)
    in_order = drive(config, compute, workers=3, updates=5)
    shuffled = drive(config, compute, workers=3, updates=5, shuffle=random.Random(1))
    assert torch.equal(in_order.parameters, shuffled.parameters)
    assert torch.equal(in_order.statistics, shuffled.statistics)


def test_ssp_without_staleness_is_sync_and_with_it_is_not(small_store: PreparedStore) -> None:
    compute = BatchGradient(settings(), small_store, CPU)
    order = [random.Random(7) for _ in range(3)]
    sync = drive(settings(mode="sync"), compute, 2, 8, order[0])
    bounded = drive(settings(mode="ssp", staleness=0), compute, 2, 8, order[1])
    ahead = drive(settings(mode="ssp", staleness=2), compute, 2, 8, order[2])
    assert torch.equal(sync.parameters, bounded.parameters)
    assert torch.equal(sync.statistics, bounded.statistics)
    assert not torch.equal(sync.parameters, ahead.parameters)


@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam"])
def test_training_learns_real_images(small_store: PreparedStore, kind: str) -> None:
    rate = 0.1 if kind == "sgd" else 0.003
    config = settings(
        mode="async",
        batch_size=32,
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(kind=kind, momentum=MOMENTUM if kind == "sgd" else 0.0),
        schedule=ScheduleConfig(kind="constant", learning_rate=rate),
    )
    compute = BatchGradient(config, small_store, CPU)
    first, trained = drive(config, compute, 2, 1), drive(config, compute, 2, 60)
    probe = Lease(10_000_000 % (config.epochs * 5), 0, "probe", 0)
    assert compute(probe, trained).loss < compute(probe, first).loss - 0.4
