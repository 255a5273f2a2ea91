"""The parts of a run, made from its settings: the same for real processes, runs in one process, and benchmarks."""

from collections.abc import Callable

import torch
from torch import Tensor

from psys.compute.batches import Batches
from psys.compute.class_weights import class_weights
from psys.compute.flat import FlatModel
from psys.compute.gradient import BatchGradient
from psys.compute.local_steps import LocalSteps
from psys.compute.step import StepResult
from psys.data.batch_plan import BatchPlan
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.ps.controller import RunController
from psys.ps.coordinator import Coordinator
from psys.ps.ledger import Ledger
from psys.ps.membership import Membership
from psys.ps.messages import Evaluated
from psys.ps.policy import make_policy
from psys.ps.schedule import highest_rate
from psys.ps.slice import Slice
from psys.ps.slots import BufferLayout
from psys.ps.store import ParameterStore
from psys.run.config import RunConfig
from psys.run.network import USUAL, ImageFormat, build_network, format_of, measure_batch_norm


def initial_model(config: RunConfig, classes: int, images: ImageFormat = USUAL) -> FlatModel:
    """The model with the run's initial parameters, on the CPU. Seeds torch. Raises PsysError as `build_network`."""
    torch.manual_seed(config.seed)
    return FlatModel(build_network(config, classes, images))


def initial_model_for(config: RunConfig, store: PreparedStore) -> FlatModel:
    """The model with the run's initial parameters and statistics, for whoever has the store."""
    model = initial_model(config, len(store.classes), format_of(store))
    if config.batchnorm == "restore":
        measure_batch_norm(model, store)
    return model


def layout_of(config: RunConfig, model: FlatModel) -> BufferLayout:
    """The layout of the workers' buffers for this model. Raises ValueError as RunConfig.buffer_layout does."""
    return config.buffer_layout(len(model.parameters), len(model.statistics))


def initial_slice(config: RunConfig, model: FlatModel, number: int) -> Slice:
    """Server `number`'s slice of the model, with the optimizer at its start. Where workers take steps, these decay."""
    part = layout_of(config, model).slices[number]
    decayed = min(max(model.decayed - part.start, 0), part.stop - part.start)
    statistics = model.statistics if number == 0 else model.statistics[:0]
    optimizer = config.optimizer
    if config.local_steps > 1:
        optimizer = optimizer.model_copy(update={"weight_decay": 0.0})
    rate = highest_rate(config.schedule, config.gradients_of_update)
    store = ParameterStore(model.parameters[part], decayed, statistics, optimizer, config.compensation, rate)
    return Slice(number, store, config.wire, config.topk_share)


def initial_ledger(config: RunConfig, store: PreparedStore) -> Ledger:
    """The ledger of all batches of the run. Raises PsysError if the holdout leaves no training images."""
    training, _ = holdout(store.split("train").labels, config.validation_share, config.seed)
    return ledger_of(config, len(training))


def ledger_of(config: RunConfig, samples: int) -> Ledger:
    """The ledger of a run over `samples`: what it calls a batch is a lease of `local_steps` batches."""
    return Ledger(config.epochs, samples, *_lease_sizes(config))


def local_steps(config: RunConfig, samples: int, gradient: Callable[[int, FlatModel], StepResult]) -> LocalSteps:
    """Computes the leases of a run over `samples`, each batch with `gradient`."""
    batches = BatchPlan(samples, config.batch_size, config.earlier_batch_sizes)
    decay = config.optimizer.weight_decay if config.local_steps > 1 else 0.0
    return LocalSteps(gradient, BatchPlan(samples, *_lease_sizes(config)), batches, decay)


def _lease_sizes(config: RunConfig) -> tuple[int, list[tuple[int, int]]]:
    """Images of a lease, and rows (images, epoch) of those before the epoch."""
    steps = config.local_steps
    return steps * config.batch_size, [(steps * size, epoch) for size, epoch in config.earlier_batch_sizes]


def loss_weights(config: RunConfig, store: PreparedStore) -> Tensor | None:
    """Weights (classes,) of the classes in the loss; None: all alike. Raises PsysError if they do not fit the store."""
    labels = store.split("train").labels
    training, _ = holdout(labels, config.validation_share, config.seed)
    return class_weights(config.class_weights, labels[training], len(store.classes))


def run_controller(
    config: RunConfig,
    ledger: Ledger,
    awaited: int,
    version: int = 0,
    seconds: float = 0.0,
    saved: int = 0,
    best: Evaluated | None = None,
    patience_from: float = 0.0,
) -> RunController:
    """The controller of the run, in which `awaited` workers start together (see RunController, Coordinator)."""
    policy = make_policy(
        config.mode, config.staleness, config.prefetch, config.backup_workers, config.max_staleness, config.sync_epochs
    )
    coordinator = Coordinator(
        ledger,
        policy,
        config.optimizer,
        config.schedule,
        config.epochs,
        awaited,
        slots=config.slots(),
        version=version,
        compensation=config.compensation,
    )
    membership = Membership(config.heartbeat_timeout)
    return RunController(config.rules(), membership, coordinator, seconds, saved, best, patience_from)


def batch_gradient(config: RunConfig, store: PreparedStore, *models: FlatModel) -> BatchGradient:
    """Computes the run's batches from `store` with any of `models`, which are on one device."""
    batches = Batches(
        store,
        config.augment,
        models[0].parameters.device,
        batch_size=config.batch_size,
        validation_share=config.validation_share,
        seed=config.seed,
        guess=not config.prefetch or config.local_steps > 1,  # within a lease nobody tells which batch comes next
        earlier_batch_sizes=config.earlier_batch_sizes,
    )
    weights = loss_weights(config, store)
    return BatchGradient(batches, config.precision, config.label_smoothing, config.gradient_clip, weights, *models)
