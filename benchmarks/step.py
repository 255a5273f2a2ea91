"""The gradient step: `python -m benchmarks.step [--models resnet44 resnet8] [--batches 64 256] [--rounds 9]`.

The benchmark compares the gradient step of psys with eager float32 in NCHW, the first version a user would write, on
the same real images in one process, with interleaved rounds. It also measures the limit of the machine in the same
rounds. On a CPU the limit is arithmetic: the floating-point operations of the step at the speed of a large square
matrix product in the dtype of the arm. On a GPU the limit is memory: the bytes that convolutions, batch norms and
linear layers must read and write at the speed of a large copy (all other operations can be fused into these layers).
The GPU part has not been run. Results: results/<machine>/step.json, one part per model.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import ROOT, count, median_spread, results_path, table, write
from psys.augment.batch import normalise
from psys.compute.device import choose_device, choose_precision
from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep
from psys.data.store import PreparedStore
from psys.errors import exit_with_message
from psys.models.registry import build

_MATRIX = 2048  # rows and columns of the matrix product that measures the limit on a CPU
_COPIED = 2**30  # bytes of the copy that measures the limit on a GPU


class Timed(NamedTuple):
    """A step, or the operation that measures the limit; `work` is operations (CPU) or bytes moved (GPU)."""

    call: Callable[[], object]
    dtype: torch.dtype
    work: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.step", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet44", "resnet8"])
    parser.add_argument("--batches", nargs="+", type=count, default=[64, 256])
    parser.add_argument("--rounds", type=count, default=9)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=results_path("step"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, store = choose_device(0), PreparedStore.open(arguments.store)
    split = store.split("train")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {arguments.threads} thread(s)"
    rows: list[list[str]] = []
    for model in arguments.models:
        batches = {}
        for batch in arguments.batches:
            chosen = np.arange(batch) % len(split.labels)
            images, labels = (torch.from_numpy(np.array(c[chosen])).to(device) for c in (split.images, split.labels))
            views = normalise(images, store.channel_mean, store.channel_std)
            print(f"{model}, batch {batch}", file=sys.stderr, flush=True)
            batches[batch] = measure(model, views, labels, arguments.rounds)
            rows += report(model, batch, batches[batch])
        write(arguments.out, {"device": name, "batches": batches}, part=model)
    header = ["model", "batch", "step", "ms", "images/s", "times eager fp32", "% of the limit"]
    print("\n".join(table(header, rows)))


def measure(model: str, views: Tensor, labels: Tensor, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of a step, and seconds at the limit of the machine, by arm and round."""
    arms = steps(model, views, labels)
    limits = {dtype: limit_of(dtype, views.device) for dtype in {arm.dtype for arm in arms.values()}}
    for each in [*arms.values(), *limits.values()]:
        for _ in range(10 if views.is_cuda else 2):
            each.call()
    taken: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "limit_seconds": []} for name in arms}
    for number in range(rounds):
        per_work = {dtype: seconds_of(each, views.device) / each.work for dtype, each in limits.items()}
        turn = number % len(arms)
        for name in [*arms][turn:] + [*arms][:turn]:
            taken[name]["seconds"].append(seconds_of(arms[name], views.device))
            taken[name]["limit_seconds"].append(arms[name].work * per_work[arms[name].dtype])
    return taken


def steps(model: str, views: Tensor, labels: Tensor) -> dict[str, Timed]:
    """The arms; `views` are channels_last. Each arm fetches the loss after a step, as a user who logs the loss does."""
    fp32, bf16 = torch.float32, torch.bfloat16
    module = build(model, num_classes=10).to(views.device).train()
    nhwc = copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = choose_precision("auto", views.device)
    psys = GradientStep(FlatModel(copy.deepcopy(module)), precision)

    def eager(network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Callable[[], object]:
        def step() -> float:
            network.zero_grad()
            with torch.autocast(inputs.device.type, dtype, enabled=dtype != fp32):
                loss = F.cross_entropy(network(inputs), labels)
            loss.backward()
            return loss.item()

        return step

    nchw = views.contiguous()
    calls = {"eager fp32": (eager(module, nchw, fp32), fp32)}
    if not views.is_cuda:
        calls["eager fp32, channels_last"] = eager(nhwc, views, fp32), fp32
    if precision == bf16:
        calls["eager bf16, channels_last"] = eager(nhwc, views, bf16), bf16
    if views.is_cuda:
        compiled = copy.deepcopy(nhwc)
        compiled.compile(mode="reduce-overhead")
        calls["compiled bf16, channels_last"] = eager(compiled, views, bf16), bf16
    calls[f"psys ({str(precision).removeprefix('torch.')})"] = (lambda: psys(views, labels)), precision
    work = elements_moved if views.is_cuda else operations
    amount = work(copy.deepcopy(module), views, labels)
    return {
        name: Timed(call, dtype, amount * (dtype.itemsize if views.is_cuda else 1))
        for name, (call, dtype) in calls.items()
    }


def operations(module: nn.Module, views: Tensor, labels: Tensor) -> float:
    """Floating-point operations of the matrix products and convolutions, forward and backward."""
    # In bfloat16: the counter misses the float32 linear layers that oneDNN computes.
    with FlopCounterMode(display=False) as counter, torch.autocast(views.device.type, torch.bfloat16):
        F.cross_entropy(module(views), labels).backward()
    return float(counter.get_total_flops())


def elements_moved(module: nn.Module, views: Tensor, labels: Tensor) -> float:
    """Elements that the layers must at least read and write, forward and backward.

    x, w -> y; dy, w -> dx; x, dy -> dw: three times the sizes of x, w and y. Batch norm needs dy and x once for both.
    """
    moved = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        weights = sum(p.numel() for p in layer.parameters())
        if isinstance(layer, nn.BatchNorm2d):
            moved += 5 * output.numel()
        elif weights:
            moved += 3 * (inputs[0].numel() + weights + output.numel())

    for layer in module.modules():
        if not any(layer.children()):
            layer.register_forward_hook(count)
    module(views)
    return float(moved)


def limit_of(dtype: torch.dtype, device: torch.device) -> Timed:
    """The operation that measures the limit of the machine: a matrix product on a CPU, a copy on a GPU."""
    if device.type == "cuda":
        source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return Timed(lambda: target.copy_(source), dtype, 2 * _COPIED)
    left, right = torch.randn(2, _MATRIX, _MATRIX).to(dtype)
    product = torch.empty_like(left)
    return Timed(lambda: torch.mm(left, right, out=product), dtype, 2 * _MATRIX**3)


def seconds_of(timed: Timed, device: torch.device) -> float:
    """Seconds of one call; on a GPU the mean of many calls, because one call is too short for the clock."""
    repeats = 20 if device.type == "cuda" else 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        timed.call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def report(model: str, batch: int, arms: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """A row for every arm; ratios are taken within a round."""
    first = next(iter(arms.values()))["seconds"]
    rows = []
    for name, taken in arms.items():
        seconds = taken["seconds"]
        speed = batch / statistics.median(seconds)
        times = median_spread([a / b for a, b in zip(first, seconds, strict=True)], 2)
        share = median_spread([100 * a / b for a, b in zip(taken["limit_seconds"], seconds, strict=True)], 0)
        milliseconds = median_spread([1e3 * s for s in seconds])
        rows.append([model, str(batch), name, milliseconds, f"{speed:,.0f}", times, share])
    return rows


if __name__ == "__main__":
    with exit_with_message():
        main()
