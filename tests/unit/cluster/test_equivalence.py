"""What the modes promise, on real images and a real network; gradients computed as workers do, in one process."""

import copy
import random
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psys.augment.batch import AugmentConfig, augment
from psys.augment.foreground import ForegroundConfig
from psys.cluster.worker import BatchGradient
from psys.compute.flat import FlatModel
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.models.registry import build
from psys.ps.coordinator import Coordinator, Decision
from psys.ps.ledger import Lease, Ledger, batch_seed, samples_of
from psys.ps.policy import make_policy
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import Contribution, OptimizerConfig, ParameterStore, Snapshot
from psys.run.config import RunConfig

RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-3


def settings(**changes: object) -> RunConfig:
    usual = {
        "model": "resnet8",
        "epochs": 100,
        "batch_size": 8,
        "precision": "fp32",
        "validation_share": 0.0,
        "augment": AugmentConfig(views=2, cutout_size=8, foreground=ForegroundConfig(black=0.25)),
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


def frozen_norm(module: nn.Module) -> nn.Module:
    """Batch norm uses its running statistics in training too, so that a batch's gradient is the mean of its images'."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train = lambda mode=True, layer=layer: layer  # type: ignore[method-assign]
            layer.training = False
    return module


class Cluster:
    """Workers, servers and coordinator of a run in one process; of the workers a random one acts next if `shuffle`."""

    def __init__(
        self,
        config: RunConfig,
        data: PreparedStore,
        workers: int,
        shuffle: random.Random | None = None,
        module: nn.Module | None = None,
    ) -> None:
        self._prefetch, self._shuffle = config.prefetch, shuffle
        self._model = model = FlatModel(module or fresh_module(config))
        self._compute = BatchGradient(config, data, model)
        layout = config.layout(len(model.parameters), len(model.statistics))
        self._slices = layout.slices
        self._stores = [
            ParameterStore(
                model.parameters[part],
                min(max(model.decayed - part.start, 0), part.stop - part.start),
                model.statistics,
                config.optimizer,
            )
            for part in layout.slices
        ]
        self._coordinator = Coordinator(
            Ledger(config.epochs, self._compute.samples, config.batch_size),
            make_policy(config.mode, config.staleness, config.prefetch),
            config.optimizer,
            config.schedule,
            config.epochs,
            workers,
            layout.slots,
        )
        self._held: dict[str, list[Lease]] = defaultdict(list)
        self._read: dict[Lease, tuple[Tensor, Tensor, float]] = {}  # parameters, statistics, reach
        self._latest: dict[str, Tensor] = {}
        self._pushed: dict[Lease, tuple[Tensor, Tensor]] = {}
        for number in range(workers):
            self._follow(self._coordinator.request(f"worker{number}"))

    def train(self, updates: int) -> Snapshot:
        """Until `updates` updates are made."""
        while self._stores[0].version < updates:
            ready = sorted(worker for worker, leases in self._held.items() if len(leases) > self._prefetch)
            self._work(self._shuffle.choice(ready) if self._shuffle else ready[0])
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        parts = [store.snapshot() for store in self._stores]
        return Snapshot(parts[0].version, torch.cat([part.parameters for part in parts]), parts[0].statistics)

    def _ahead(self, drift: float) -> Tensor:
        return torch.cat([store.ahead(drift, torch.empty_like(store.parameters)) for store in self._stores])

    def loss(self, batch: int) -> float:
        """Of the parameters as they are."""
        now = self.snapshot()
        self._model.load(now.parameters, now.statistics)
        return self._compute(batch, self._model).loss

    def _work(self, worker: str) -> None:
        lease = self._held[worker].pop(0)
        parameters, statistics, reach = self._read.pop(lease)
        self._model.load(parameters, statistics)
        if reach:
            self._model.parameters.sub_(self._latest[worker], alpha=reach)
        self._compute(lease.batch, self._model)
        gradient = self._latest[worker] = self._model.gradient.clone()
        self._pushed[lease] = gradient, self._model.statistics.clone()
        self._follow(self._coordinator.push(lease)[1])
        self._follow(self._coordinator.request(worker, self._held[worker]))

    def _follow(self, decision: Decision) -> None:
        for update in decision.updates:
            pushed = [self._pushed.pop(lease) for lease in update.leases]
            for store, part in zip(self._stores, self._slices, strict=True):
                contributions = [
                    Contribution(gradient[part].clone(), statistics, share)
                    for (gradient, statistics), share in zip(pushed, update.shares, strict=True)
                ]
                store.apply(contributions, update.learning_rate, update.statistics_share)
        for worker, (lease, drift, reach) in decision.grants.items():
            assert lease is not None
            self._held[worker].append(lease)
            self._read[lease] = self._ahead(drift), self._stores[0].statistics.clone(), reach
            if len(self._held[worker]) <= self._prefetch:
                self._follow(self._coordinator.request(worker, self._held[worker]))


def views_of(config: RunConfig, data: PreparedStore, batch: int) -> tuple[Tensor, Tensor]:
    """The augmented batch, made without any class of the cluster."""
    split = data.split("train")
    chosen, _ = holdout(split.labels, config.validation_share, config.seed)
    rows = chosen[samples_of(batch, len(chosen), config.batch_size, config.seed).numpy()]
    columns = [torch.tensor(column[rows]) for column in split]
    generator = torch.Generator().manual_seed(batch_seed(config.seed, batch, stream=1))
    return augment(*columns, config.augment, len(data.classes), data.channel_mean, data.channel_std, generator)


def plain_torch(module: nn.Module, rate: float = RATE) -> torch.optim.SGD:
    """Fused as on the servers: torch's implementations of the rule round differently."""
    groups = [
        {"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in module.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True, fused=True)


def accumulating(config: RunConfig) -> FlatModel:
    """A fresh model, to whose gradient torch's backward() adds."""
    model = FlatModel(fresh_module(config).train())
    for parameter, gradient in zip(model.parameter_list, model.parameter_gradients, strict=True):
        parameter.grad = gradient
    return model


def ghost_batch_gradient(model: FlatModel, config: RunConfig, data: PreparedStore, batches: tuple[int, int]) -> None:
    """Leave the mean gradient and the mean of the statistics of two batches, each normalised by itself, in `model`."""
    before, after = model.statistics.clone(), []
    model.gradient.zero_()
    for batch in batches:
        model.statistics.copy_(before)
        views, targets = views_of(config, data, batch)
        (F.cross_entropy(model.module(views), targets) / 2).backward()
        after.append(model.statistics.clone())
    model.statistics.copy_((after[0] + after[1]) / 2)


def same(a: Snapshot | FlatModel, b: Snapshot | FlatModel) -> bool:
    return torch.equal(a.parameters, b.parameters) and torch.equal(a.statistics, b.statistics)


def test_async_with_one_worker_is_plain_torch_training_bit_for_bit(small_store: PreparedStore) -> None:
    config = settings(mode="async")
    got = Cluster(config, small_store, workers=1).train(20)
    # The weights lie as the images do, or other kernels compute with them and round otherwise.
    module = fresh_module(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = plain_torch(module)
    for batch in range(20):
        views, targets = views_of(config, small_store, batch)
        optimizer.zero_grad()
        F.cross_entropy(module(views), targets).backward()
        optimizer.step()
    assert same(got, FlatModel(module))


def test_sync_over_two_workers_is_one_process_with_the_doubled_batch(small_store: PreparedStore) -> None:
    # An activation that rounds to the other side of ReLU's kink moves a few parameters by about a thousandth of the
    # rate, and which ones do depends on the number of threads: hence the low rate, and a norm for a measure.
    rate = 1e-3
    config = settings(mode="sync", batch_size=16, schedule=ScheduleConfig(kind="constant", learning_rate=rate))
    module = frozen_norm(module_with_statistics(config, small_store))
    before = FlatModel(copy.deepcopy(module)).parameters
    got = Cluster(config, small_store, workers=2, module=module).train(20)
    module = module_with_statistics(config, small_store).eval()
    optimizer = plain_torch(module, rate)
    for update in range(20):
        halves = [views_of(config, small_store, batch) for batch in (2 * update, 2 * update + 1)]
        views, targets = (torch.cat(parts) for parts in zip(*halves, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(module(views), targets).backward()
        optimizer.step()
    expected = FlatModel(module).parameters
    assert (got.parameters - expected).norm() < 0.005 * (expected - before).norm()
    assert (expected - before).abs().max() > 1e-2  # it did train


def test_sync_with_batch_norm_is_one_process_with_ghost_batches(small_store: PreparedStore) -> None:
    """Each half is normalised by itself; the running statistics are the mean of the halves' (Hoffer et al. 2017)."""
    config = settings(mode="sync")
    got = Cluster(config, small_store, workers=2).train(20)
    model = accumulating(config)
    optimizer = plain_torch(model.module)
    for update in range(20):
        ghost_batch_gradient(model, config, small_store, (2 * update, 2 * update + 1))
        optimizer.step()
    assert same(got, model)


def test_sync_with_prefetch_is_sgd_whose_gradients_come_one_update_late(small_store: PreparedStore) -> None:
    plain = OptimizerConfig(momentum=MOMENTUM, weight_decay=DECAY, look_ahead=False)
    config = settings(mode="sync", prefetch=1, optimizer=plain)
    got, again = (Cluster(config, small_store, 2, random.Random(seed)).train(8) for seed in (1, 2))
    assert same(got, again)
    reads, writes = accumulating(config), accumulating(config)
    optimizer = plain_torch(writes.module)
    versions = [(writes.parameters.clone(), writes.statistics.clone())]
    for update in range(8):
        reads.load(*versions[max(0, update - 1)])
        ghost_batch_gradient(reads, config, small_store, (2 * update, 2 * update + 1))
        writes.gradient.copy_(reads.gradient)
        writes.statistics.copy_(reads.statistics)
        optimizer.step()
        versions.append((writes.parameters.clone(), writes.statistics.clone()))
    assert same(got, writes)
    assert not same(got, Cluster(settings(mode="sync"), small_store, 2).train(8))


def test_one_worker_that_prefetches_is_plain_training_for_it_looks_exactly_ahead(small_store: PreparedStore) -> None:
    """But for rounding: what is missing in the parameters it reads is its own gradient, and it knows that one."""
    updates = 4  # few, for every one multiplies rounding: by 20 it is 4 % of the way on some processors

    def trained(**changes: object) -> Tensor:
        optimizer = OptimizerConfig(momentum=MOMENTUM, look_ahead=bool(changes.pop("look_ahead", True)))
        config = settings(mode="async", optimizer=optimizer, **changes)
        return Cluster(config, small_store, workers=1).train(updates).parameters

    before = FlatModel(fresh_module(settings())).parameters
    plain, exact, late = trained(), trained(prefetch=1), trained(prefetch=1, look_ahead=False)
    assert (exact - plain).norm() < 1e-3 * (plain - before).norm()
    assert (late - plain).norm() > 0.1 * (plain - before).norm()


@pytest.mark.parametrize(
    ("mode", "kind", "prefetch"),
    [("sync", "sgd", 0), ("sync", "sgd", 1), ("async", "sgd", 1), ("async", "adam", 0), ("ssp", "rmsprop", 0)],
)
def test_several_servers_are_one_bit_for_bit(small_store: PreparedStore, mode: str, kind: str, prefetch: int) -> None:
    optimizer = OptimizerConfig(kind=kind, momentum=0 if kind == "adam" else MOMENTUM, weight_decay=DECAY)
    alone, three = (
        Cluster(
            settings(mode=mode, optimizer=optimizer, servers=servers, prefetch=prefetch),
            small_store,
            2,
            random.Random(3),
        ).train(6)
        for servers in (1, 3)
    )
    assert same(alone, three)


def test_images_held_out_are_never_trained_on(small_store: PreparedStore, tmp_path: Path) -> None:
    """A whole epoch of gradients stays the same when every held-out image is painted over."""
    config = settings(validation_share=0.25, batch_size=30, epochs=1)
    _, held = holdout(small_store.split("train").labels, 0.25, config.seed)
    model = FlatModel(fresh_module(config))

    def gradients(data: PreparedStore) -> Tensor:
        compute, found = BatchGradient(config, data, model), []
        assert (compute.samples, len(held)) == (120, 40)
        for batch in range(4):
            compute(batch, model)
            found.append(model.gradient.clone())
        return torch.stack(found)

    def painted(name: str, rows: np.ndarray | slice) -> PreparedStore:
        shutil.copytree(small_store.path, tmp_path / name)
        np.load(tmp_path / name / "train_images.npy", mmap_mode="r+")[rows] = 255
        return PreparedStore.open(tmp_path / name)

    before = gradients(small_store)
    assert torch.equal(gradients(painted("held", held)), before)
    assert not torch.equal(gradients(painted("all", slice(None))), before)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_sync_does_not_depend_on_who_computes_what_or_comes_first(small_store: PreparedStore, prefetch: int) -> None:
    config = settings(mode="sync", prefetch=prefetch)
    in_order = Cluster(config, small_store, workers=3).train(5)
    shuffled = Cluster(config, small_store, workers=3, shuffle=random.Random(1)).train(5)
    assert same(in_order, shuffled)


def test_ssp_without_staleness_is_sync_and_with_it_is_not(small_store: PreparedStore) -> None:
    order = [random.Random(7) for _ in range(3)]
    sync = Cluster(settings(mode="sync"), small_store, 2, order[0]).train(8)
    bounded = Cluster(settings(mode="ssp", staleness=0), small_store, 2, order[1]).train(8)
    ahead = Cluster(settings(mode="ssp", staleness=2), small_store, 2, order[2]).train(8)
    assert same(sync, bounded)
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
    cluster, probe = Cluster(config, small_store, 2), 10_000_000 % (config.epochs * 5)
    cluster.train(1)
    before = cluster.loss(probe)
    cluster.train(60)
    assert cluster.loss(probe) < before - 0.4
