"""Baselines of benchmarks.throughput, a process each: `python -m benchmarks.baselines KIND --rank R --config FILE`.

alone: processes that do not communicate, each with its own optimizer; the speed of psys if communication cost
nothing. ddp: torch's DistributedDataParallel over gloo on loopback, set up for speed. ddp+memory: the same in
processes that keep freed memory, as workers of psys and `alone` do; torch does not do this by default. All kinds use
the images, augmentation and precision of psys and train until interrupted. A process adds a line to
<runs>/<rank>/steps.txt after every step: the seconds of the machine's monotonic clock and the images of the step.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from psys.compute.device import choose_precision, keep_freed_memory
from psys.config import read_yaml, validate
from psys.data.store import PreparedStore
from psys.models.registry import build
from psys.run.assembly import batch_gradient, initial_model
from psys.run.config import RunConfig

Step = Callable[[int], int]  # trains on the batch of this number; returns the number of its views


def alone(config: RunConfig, store: PreparedStore, rank: int) -> Step:
    """The gradient step of psys, then one fused optimizer step on the flat vector."""
    model = initial_model(config, len(store.classes))
    gradient = batch_gradient(config, store, model)
    parameters = nn.Parameter(model.parameters)
    parameters.grad = model.gradient
    optimizer = _sgd([parameters], config)

    def step(batch: int) -> int:
        views = gradient(batch, model).views
        optimizer.step()
        return views

    return step


def ddp(config: RunConfig, store: PreparedStore, rank: int) -> Step:
    """Gradients averaged during the backward pass, in buckets without a copy; a fused optimizer step on every rank."""
    assert config.workers is not None
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{config.runs / 'rendezvous'}", rank=rank, world_size=config.workers)
    batches = batch_gradient(config, store, initial_model(config, len(store.classes))).batches
    module = build(config.model, len(store.classes))
    precision = choose_precision(config.precision, torch.device("cpu"))
    model = DistributedDataParallel(
        module.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        gradient_as_bucket_view=True,
        static_graph=True,
        broadcast_buffers=False,  # running statistics stay on their rank
    )
    optimizer = _sgd(list(model.parameters()), config)

    def step(batch: int) -> int:
        views, labels = batches[batch]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            logits = model(views)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        loss.backward()
        # A worker of psys reports loss and accuracy of every batch.
        torch.stack([loss.detach(), (logits.argmax(1) == labels).sum().float()]).tolist()
        optimizer.step()
        return len(labels)

    return step


def _sgd(parameters: list[nn.Parameter], config: RunConfig) -> SGD:
    rate, chosen = config.schedule.learning_rate, config.optimizer
    assert (chosen.kind, chosen.weight_decay) == ("sgd", 0.0)
    return SGD(parameters, rate, chosen.momentum, nesterov=chosen.nesterov, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.baselines", description=__doc__)
    parser.add_argument("kind", choices=["alone", "ddp", "ddp+memory"])
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    config = validate(RunConfig, read_yaml(arguments.config), str(arguments.config))
    assert config.workers is not None
    assert config.threads is not None
    if arguments.kind != "ddp":  # torch does not do this by default
        keep_freed_memory()
    torch.set_num_threads(config.threads)
    make = alone if arguments.kind == "alone" else ddp
    step = make(config, PreparedStore.open(config.store), arguments.rank)
    folder = config.runs / str(arguments.rank)
    folder.mkdir()
    with (folder / "steps.txt").open("w", buffering=1) as steps:  # a line is written at once
        for batch in itertools.count(arguments.rank, config.workers):
            images = step(batch) // config.augment.views
            steps.write(f"{time.monotonic()} {images}\n")


if __name__ == "__main__":
    main()
