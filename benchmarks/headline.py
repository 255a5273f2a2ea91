"""The table on top of RESULTS.md: figures of every machine next to the goal of each figure; a missed goal is bold."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.measure import table

Benchmarks = dict[str, Any]  # the result files of a machine, by benchmark
Figure = tuple[str, bool]  # the text, and whether the goal is reached


def headline(results: dict[str, Benchmarks]) -> list[str]:
    """Lines of the Markdown table; figures that no machine has measured are left out."""
    rows = []
    for name, goal, figures in FIGURES:
        cells = [_cell(figures, benchmarks) for benchmarks in results.values()]
        if any(cells):
            rows.append([name, goal, *cells])
    return table(["", "goal", *results], rows)


def _cell(figures: Callable[[Benchmarks], list[Figure]], benchmarks: Benchmarks) -> str:
    try:
        return " / ".join(text if reached else f"**{text}**" for text, reached in figures(benchmarks))
    except KeyError:  # this machine has no such result
        return ""


def _shares(model: str, async_goal: float, sync_goal: float = 0.0) -> Callable[[Benchmarks], list[Figure]]:
    def figures(benchmarks: Benchmarks) -> list[Figure]:
        rounds = benchmarks["throughput"]["parts"][model]["rounds"]
        asynchronous, sync, ddp = (_ratio(rounds, arm, "alone") for arm in ("async", "sync", "ddp"))
        return [
            (f"{asynchronous:.3f}", asynchronous >= async_goal),
            (f"{sync:.3f}", sync >= sync_goal and sync > ddp),
            (f"{ddp:.3f}", ddp < min(asynchronous, sync)),
        ]

    return figures


def _async_to_ddp(benchmarks: Benchmarks) -> list[Figure]:
    ratio = _ratio(benchmarks["throughput"]["parts"]["mlp3748"]["rounds"], "async", "ddp")
    return [(f"{ratio:.2f}", ratio >= 1.5)]


def _ratio(rounds: list[dict[str, dict[str, float]]], arm: str, other: str) -> float:
    return statistics.median(each[arm]["images_per_second"] / each[other]["images_per_second"] for each in rounds)


def _push_pull(numel: int, unit: str, goal: float) -> Callable[[Benchmarks], list[Figure]]:
    def figures(benchmarks: Benchmarks) -> list[Figure]:
        rounds = _case(benchmarks, numel, workers=1)
        ratio = statistics.median(each["push_pull_ms"] / each[unit] for each in rounds)
        return [(f"{ratio:.2f}", ratio <= goal)]

    return figures


def _eight_workers(benchmarks: Benchmarks) -> list[Figure]:
    two, eight = (
        statistics.median(each["per_second"] for each in _case(benchmarks, 656_000, workers)) for workers in (2, 8)
    )
    return [(f"{eight / two:.2f}", eight >= two)]


def _case(benchmarks: Benchmarks, numel: int, workers: int) -> list[dict[str, float]]:
    name = f"servers=1 workers={workers} wire=fp32 apart=False numel={numel}"
    rounds: list[dict[str, float]] = benchmarks["wire"]["parts"]["fp32"]["series"][name]
    return rounds


def _step(benchmarks: Benchmarks) -> list[Figure]:
    figures = []
    for model in ("resnet44", "resnet8"):
        arms = benchmarks["step"]["parts"][model]["batches"]["64"]
        chosen = next(taken for arm, taken in arms.items() if arm.startswith("psys"))
        pairs = zip(arms["eager fp32"]["seconds"], chosen["seconds"], strict=True)
        times = statistics.median(eager / taken for eager, taken in pairs)
        figures.append((f"{times:.2f}", times >= 1.5))
    return figures


def _accuracy(benchmarks: Benchmarks) -> list[Figure]:
    accuracies: dict[str, list[float]] = {}
    for run in benchmarks["sample"]["parts"].values():
        accuracies.setdefault(run["arm"], []).append(100 * run["best"]["test"]["accuracy"])
    means = [statistics.mean(accuracies[arm]) for arm in ("sync", "async", "async-prefetch")]
    return [(f"{mean:.1f}", mean >= means[0]) for mean in means]


def _startup(benchmarks: Benchmarks) -> list[Figure]:
    seconds = statistics.median(each["first update"] for each in benchmarks["startup"]["rounds"])
    return [(f"{seconds:.1f}", seconds <= 12)]


def _memory(benchmarks: Benchmarks) -> list[Figure]:
    part = benchmarks["memory"]["parts"]["resnet44"]
    resident = part["points"][-1]["resident_mb"]
    return [(f"{resident:.0f}", resident <= part["bound_mb"]), (f"{part['growth']:+.2%}", part["growth"] <= 0.02)]


def _decisions(benchmarks: Benchmarks) -> list[Figure]:
    modes = benchmarks["decisions"]["modes"]
    ratios = {mode: sizes["4096"]["median_us"] / sizes["8"]["median_us"] for mode, sizes in modes.items()}
    return [(f"{mode} {ratio:.2f}", ratio <= 4) for mode, ratio in ratios.items()]


def _storm(benchmarks: Benchmarks) -> list[Figure]:
    part = benchmarks["storm"]["parts"]["async"]
    lost, left = part["batches"]["lost"], sum(part["left"].values())
    return [(str(lost), lost == 0), (str(left), left == 0)]


def _lead(benchmarks: Benchmarks) -> list[Figure]:
    parts = benchmarks["segment_quality"]["parts"]
    leads = [parts[folder]["lead_of_auto_over_plain_rectangle"]["mean"] for folder in ("cifar", "photographs")]
    return [(f"{lead:+.3f}", lead >= 0.05) for lead in leads]


def _quality(benchmarks: Benchmarks) -> list[Figure]:
    parts = benchmarks["segment_quality"]["parts"]
    images = (parts[folder]["images"] for folder in ("cifar", "photographs"))
    return [(f"{statistics.mean(image['auto']['iou'] for image in of_folder):.3f}", True) for of_folder in images]


def _actors(benchmarks: Benchmarks) -> list[Figure]:
    ratio = statistics.median(benchmarks["segment_throughput"]["parts"]["speed"]["ratios"])
    return [(f"{ratio:.2f}", ratio >= 1.9)]


def _whole(benchmarks: Benchmarks) -> list[Figure]:
    part = benchmarks["segment_throughput"]["parts"]["whole-60000"]
    return [(f"{part['seconds']:.0f}", part["done"] and part["seconds"] <= 900)]


def _augment(benchmarks: Benchmarks) -> list[Figure]:
    batches = benchmarks["augment"]["microseconds_per_view"].values()
    slowest = min(1e6 / statistics.median(taken) for arms in batches for taken in arms.values())
    return [(f"{slowest:,.0f}", slowest >= 20_000)]


FIGURES: list[tuple[str, str, Callable[[Benchmarks], list[Figure]]]] = [
    ("share of no communication, ResNet-44: async / sync / ddp", "0.97 / 0.95 / less", _shares("resnet44", 0.97, 0.95)),
    ("share, ResNet-8: async / sync / ddp", "0.95 / above ddp / less", _shares("resnet8", 0.95)),
    ("share, MLP of 25.6 M: async / sync / ddp", "0.55 / above ddp / less", _shares("mlp3748", 0.55)),
    ("images/s, MLP of 25.6 M: async to ddp", "1.5", _async_to_ddp),
    ("push_pull of 102 MB, in copies", "at most 4.5", _push_pull(25_600_000, "copy_ms", 4.5)),
    ("push_pull of 2.6 MB, in empty calls", "at most 3", _push_pull(656_000, "call_ms", 3)),
    ("push_pulls/s: 8 workers to 2", "1", _eight_workers),
    ("decision time: 4,096 workers to 8, by mode", "at most 4", _decisions),
    ("step to eager fp32, batch 64: ResNet-44 / ResNet-8", "1.5", _step),
    ("accuracy on the sample, %: sync / async / prefetch", "no less than sync", _accuracy),
    ("seconds from the command to the first update", "at most 12", _startup),
    ("server after 20,000 pushes of ResNet-44: MB / growth", "at most 311 / 2 %", _memory),
    ("killed workers: batches lost / things left behind", "0 / 0", _storm),
    ("mean IoU of `auto`: 32 x 32 / photographs", "", _quality),
    ("lead of `auto` over GrabCut from a rectangle", "0.05", _lead),
    ("segmentation: 2 actors to a plain loop", "1.9", _actors),
    ("segmentation of 60,000 images, seconds", "at most 900", _whole),
    ("slowest augmentation, views/s on one core", "20,000", _augment),
]
