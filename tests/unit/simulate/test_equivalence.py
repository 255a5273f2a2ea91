"""What each mode computes, compared with plain torch training on real images and a real network."""

import copy
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psys.augment.batch import AugmentConfig, augment
from psys.augment.foreground import ForegroundConfig
from psys.compute.flat import FlatModel
from psys.compute.order import batch_seed, samples_of
from psys.data.batch_plan import BatchPlan
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.models.registry import build
from psys.ps.optimizer import OptimizerConfig
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import SliceState
from psys.run.assembly import batch_gradient
from psys.run.config import RunConfig
from psys.simulate.in_process import InProcessRun
from psys.simulate.worker import workload_of

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
    """Batch norm that always uses its running statistics: a batch's gradient is the mean of its images' gradients."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train = partial(_stay, layer.eval())  # type: ignore[assignment,method-assign]
    return module


def _stay(layer: nn.Module, mode: bool = True) -> nn.Module:
    return layer


def started(config: RunConfig, data: PreparedStore, workers: int, module: nn.Module | None = None) -> InProcessRun:
    run = InProcessRun(config, workload_of(config, data, module), awaited=workers)
    for _ in range(workers):
        run.join()
    return run


def trained(
    config: RunConfig,
    data: PreparedStore,
    workers: int,
    updates: int,
    order: int | None = None,
    module: nn.Module | None = None,
) -> SliceState:
    """The state after so many updates; the workers act in turn, or at random, seeded with `order`."""
    run = started(config, data, workers, module)
    if order is None:
        run.run(updates=updates)
    else:
        run.run(random.Random(order).choice, updates)
    return run.state()


def views_of(config: RunConfig, data: PreparedStore, batch: int) -> tuple[Tensor, Tensor]:
    """The augmented batch, made without psys.compute.batches and psys.simulate."""
    split = data.split("train")
    chosen, _ = holdout(split.labels, config.validation_share, config.seed)
    rows = chosen[samples_of(batch, BatchPlan(len(chosen), config.batch_size), config.seed).numpy()]
    images, labels, masks, usable = [torch.tensor(column[rows]) for column in split]
    generator = torch.Generator().manual_seed(batch_seed(config.seed, batch, stream=1))
    columns = images, labels, masks, usable
    return augment(*columns, config.augment, len(data.classes), data.channel_mean, data.channel_std, generator)


def plain_torch(module: nn.Module, rate: float = RATE) -> torch.optim.SGD:
    """Fused, as on the servers: torch's other implementations of the rule round differently."""
    groups = [
        {"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in module.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True, fused=True)


def accumulating(config: RunConfig) -> FlatModel:
    """A fresh model; torch's backward() adds to its gradient."""
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


def same(a: SliceState | FlatModel, b: SliceState | FlatModel) -> bool:
    return torch.equal(a.parameters, b.parameters) and torch.equal(a.statistics, b.statistics)


def test_async_with_one_worker_equals_plain_torch_training_bit_for_bit(small_store: PreparedStore) -> None:
    config = settings(mode="async")
    got = trained(config, small_store, 1, updates=20)
    # In another memory format other kernels would compute, and round differently.
    module = fresh_module(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = plain_torch(module)
    for batch in range(20):
        views, targets = views_of(config, small_store, batch)
        optimizer.zero_grad()
        F.cross_entropy(module(views), targets).backward()
        optimizer.step()
    assert same(got, FlatModel(module))


def test_sync_with_two_workers_equals_one_process_with_the_doubled_batch(small_store: PreparedStore) -> None:
    # An activation that rounds to the other side of ReLU's kink moves a few parameters by about a thousandth of the
    # rate. Which parameters move depends on the number of threads: hence the low rate, and a norm as the measure.
    rate = 1e-3
    config = settings(mode="sync", batch_size=16, schedule=ScheduleConfig(kind="constant", learning_rate=rate))
    module = frozen_norm(module_with_statistics(config, small_store))
    before = FlatModel(copy.deepcopy(module)).parameters
    got = trained(config, small_store, 2, updates=20, module=module)
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


def test_sync_with_batch_norm_equals_one_process_with_ghost_batches(small_store: PreparedStore) -> None:
    """Each half is normalised by itself; the running statistics are the mean of the halves' (Hoffer et al. 2017)."""
    config = settings(mode="sync")
    got = trained(config, small_store, 2, updates=20)
    model = accumulating(config)
    optimizer = plain_torch(model.module)
    for update in range(20):
        ghost_batch_gradient(model, config, small_store, (2 * update, 2 * update + 1))
        optimizer.step()
    assert same(got, model)


def test_sync_with_prefetch_equals_sgd_with_gradients_one_update_late(small_store: PreparedStore) -> None:
    plain = OptimizerConfig(momentum=MOMENTUM, weight_decay=DECAY, look_ahead=False)
    config = settings(mode="sync", prefetch=1, optimizer=plain)
    got, again = (trained(config, small_store, 2, updates=8, order=order) for order in (1, 2))
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
    assert not same(got, trained(settings(mode="sync"), small_store, 2, updates=8))


def test_one_worker_with_prefetch_and_look_ahead_equals_plain_training_up_to_rounding(
    small_store: PreparedStore,
) -> None:
    """The parameters that the worker reads lack one gradient, its own, and the worker applies that one by itself."""
    updates = 4  # each update multiplies rounding errors: after 20 they are 4 % of the way on some processors

    def parameters(prefetch: int, look_ahead: bool) -> Tensor:
        optimizer = OptimizerConfig(momentum=MOMENTUM, look_ahead=look_ahead)
        config = settings(mode="async", optimizer=optimizer, prefetch=prefetch)
        return trained(config, small_store, 1, updates).parameters

    before = FlatModel(fresh_module(settings())).parameters
    plain, exact, late = parameters(0, True), parameters(1, True), parameters(1, False)
    assert (exact - plain).norm() < 1e-3 * (plain - before).norm()
    assert (late - plain).norm() > 0.1 * (plain - before).norm()


@pytest.mark.parametrize(
    ("mode", "kind", "prefetch"),
    [("sync", "sgd", 0), ("sync", "sgd", 1), ("async", "sgd", 1), ("async", "adam", 0), ("ssp", "rmsprop", 0)],
)
def test_several_servers_equal_one_server_bit_for_bit(
    small_store: PreparedStore, mode: str, kind: str, prefetch: int
) -> None:
    optimizer = OptimizerConfig(kind=kind, momentum=0 if kind == "adam" else MOMENTUM, weight_decay=DECAY)
    alone, three = (
        trained(
            settings(mode=mode, optimizer=optimizer, servers=servers, prefetch=prefetch),
            small_store,
            2,
            updates=6,
            order=3,
        )
        for servers in (1, 3)
    )
    assert same(alone, three)


def local_steps_sum(model: FlatModel, config: RunConfig, data: PreparedStore, batches: range) -> Tensor:
    """Take an SGD step with each batch; returns the sum of their gradients."""
    total = torch.zeros_like(model.gradient)
    for batch in batches:
        views, targets = views_of(config, data, batch)
        model.gradient.zero_()
        F.cross_entropy(model.module(views), targets).backward()
        model.gradient[: model.decayed].add_(model.parameters[: model.decayed], alpha=DECAY)
        total += model.gradient
        model.parameters.sub_(model.gradient, alpha=RATE)
    return total


@pytest.mark.parametrize(("mode", "workers"), [("async", 1), ("sync", 2)])
@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("wire", ["fp32", "topk"])
def test_local_steps_equal_an_outer_step_with_the_mean_of_the_workers_sums(
    small_store: PreparedStore, mode: str, workers: int, servers: int, wire: str
) -> None:
    """The last lease of the epoch of 20 batches has two of them; each worker begins at the updated parameters."""
    config = settings(mode=mode, local_steps=3, servers=servers, wire=wire, topk_share=1.0)
    updates = 7 if workers == 1 else 3
    got = trained(config, small_store, workers, updates)
    outer, inner = accumulating(config), accumulating(config)
    optimizer = plain_torch(outer.module)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    for update in range(updates):
        sums, statistics = [], []
        for lease in range(workers * update, workers * (update + 1)):
            inner.load(outer.parameters.clone(), outer.statistics.clone())
            sums.append(local_steps_sum(inner, config, small_store, range(3 * lease, min(3 * lease + 3, 20))))
            statistics.append(inner.statistics / workers)
        outer.gradient.copy_(torch.stack(sums).mean(0))
        outer.statistics.copy_(torch.stack(statistics).sum(0))
        optimizer.step()
    assert same(got, outer)


CLIP = 0.5
"""Below the norms of the first gradients here, which are above 1."""


def test_async_with_clipped_gradients_equals_torchs_clip_grad_norm(small_store: PreparedStore) -> None:
    config = settings(mode="async", gradient_clip=CLIP)
    got = trained(config, small_store, 1, updates=2)
    model = accumulating(config)
    before = model.parameters.clone()
    optimizer = plain_torch(model.module)
    for batch in range(2):
        views, targets = views_of(config, small_store, batch)
        model.gradient.zero_()
        F.cross_entropy(model.module(views), targets).backward()
        assert nn.utils.clip_grad_norm_(model.module.parameters(), CLIP) > CLIP
        optimizer.step()
    # torch adds 1e-6 to the norm that it divides by, and every update multiplies such a difference.
    assert (got.parameters - model.parameters).norm() < 1e-4 * (model.parameters - before).norm()


@pytest.mark.parametrize("wire", ["fp32", "topk"])
def test_sync_clips_each_batchs_gradient_with_any_number_of_servers(small_store: PreparedStore, wire: str) -> None:
    """One update at rate 1 without momentum moves the parameters by the mean of the two clipped gradients."""
    plain = OptimizerConfig(momentum=0, nesterov=False)
    constant = ScheduleConfig(kind="constant", learning_rate=1.0)
    config = settings(mode="sync", gradient_clip=CLIP, optimizer=plain, schedule=constant, wire=wire, topk_share=1.0)
    one, three = (
        trained(config.model_copy(update={"servers": servers}), small_store, 2, updates=1) for servers in (1, 3)
    )
    assert same(one, three)
    model = FlatModel(fresh_module(config))
    before, mean = model.parameters.clone(), torch.zeros_like(model.parameters)
    compute = batch_gradient(config.model_copy(update={"gradient_clip": None}), small_store, model)
    for batch in range(2):
        norm = compute(batch, model).gradient_norm
        assert norm > CLIP
        mean += model.gradient * (CLIP / norm) / 2
    moved = before - one.parameters
    assert (moved - mean).norm() < 1e-5 * mean.norm()


def test_gradients_below_the_clip_keep_their_bits(small_store: PreparedStore) -> None:
    clipped, plain = (
        trained(settings(mode="async", gradient_clip=clip), small_store, 1, updates=3) for clip in (1e6, None)
    )
    assert same(clipped, plain)


def test_held_out_images_do_not_influence_any_gradient(small_store: PreparedStore, tmp_path: Path) -> None:
    """The gradients of a whole epoch stay the same when every held-out image is overwritten."""
    config = settings(validation_share=0.25, batch_size=30, epochs=1)
    _, held = holdout(small_store.split("train").labels, 0.25, config.seed)
    model = FlatModel(fresh_module(config))

    def gradients(data: PreparedStore) -> Tensor:
        compute, found = batch_gradient(config, data, model), []
        assert (compute.batches.samples, len(held)) == (120, 40)
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
def test_sync_does_not_depend_on_the_order_of_the_workers(small_store: PreparedStore, prefetch: int) -> None:
    config = settings(mode="sync", prefetch=prefetch)
    in_order = trained(config, small_store, 3, updates=5)
    shuffled = trained(config, small_store, 3, updates=5, order=1)
    assert same(in_order, shuffled)


def test_ssp_with_staleness_0_equals_sync_and_with_staleness_2_does_not(small_store: PreparedStore) -> None:
    sync = trained(settings(mode="sync"), small_store, 2, updates=8, order=7)
    bounded = trained(settings(mode="ssp", staleness=0), small_store, 2, updates=8, order=7)
    ahead = trained(settings(mode="ssp", staleness=2), small_store, 2, updates=8, order=7)
    assert same(sync, bounded)
    assert not torch.equal(sync.parameters, ahead.parameters)


@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam"])
def test_training_lowers_the_loss_on_real_images(small_store: PreparedStore, kind: str) -> None:
    rate = 0.1 if kind == "sgd" else 0.003
    config = settings(
        mode="async",
        batch_size=32,
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(kind=kind, momentum=MOMENTUM if kind == "sgd" else 0.0),
        schedule=ScheduleConfig(kind="constant", learning_rate=rate),
    )
    run, probe = started(config, small_store, 2), 10_000_000 % (config.epochs * 5)
    model = FlatModel(fresh_module(config))
    gradient = batch_gradient(config, small_store, model)

    def loss_after(updates: int) -> float:
        run.run(updates=updates)
        state = run.state()
        model.load(state.parameters, state.statistics)
        return gradient(probe, model).loss

    before = loss_after(1)
    assert loss_after(90) < before - 0.4
