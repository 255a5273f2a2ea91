"""Images/s of a cluster on one machine, beside as many processes that do not communicate at all and beside torch's DDP.

`python -m benchmarks.throughput [--models resnet44 ...] [--workers 2] [--rounds 5] [--arms alone sync ...]`. Every arm
trains the same batches with the same augmentation, precision and optimizer, each process on its share of the cores;
those of psys are launched as a user would. Rounds interleave the arms in rotating order, and shares are of the same
round's `alone`. What counts happens in a window after a warm-up, in which all workers work: of each worker the images
from its first update in the window to its last. Results go to benchmarks/throughput/<model>.json.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Running, median_spread, prepared_sample, table, write
from psys.cluster.config import RunConfig
from psys.compute.device import available_cores
from psys.config import write_yaml
from psys.errors import PsysError, exit_with_message
from psys.events import read_events
from psys.ps.schedule import ScheduleConfig

BASELINES = ("alone", "ddp", "ddp+memory")
PSYS = {  # flags of launch/ps.py
    "sync": ["--mode", "sync"],
    "async": ["--mode", "async"],
    "ssp": ["--mode", "ssp"],
    "async+prefetch": ["--mode", "async", "--prefetch", "1"],
}
EPOCHS = 5_000  # never reached: the run is interrupted after its window
VALIDATION_SHARE = 0.04  # leaves 1,920 images of the sample, 30 whole batches of 64: an even share for every worker
START_SECONDS = 120.0  # the longest that an arm may take to start


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet44", "resnet8", "mlp3748"])
    parser.add_argument("--arms", nargs="+", choices=[*BASELINES, *PSYS], default=[*BASELINES, *PSYS])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    parser.add_argument("--warm-up", type=float, default=4.0, help="seconds before it")
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "throughput")
    arguments = parser.parse_args()
    prepared_sample(arguments.store)
    for model in arguments.models:
        config = RunConfig(
            store=arguments.store.absolute(),
            model=model,
            workers=arguments.workers,
            threads=max(1, available_cores() // arguments.workers),
            batch_size=arguments.batch_size,
            precision=arguments.precision,
            epochs=EPOCHS,
            snapshot_epochs=EPOCHS,
            validation_share=VALIDATION_SHARE,
            schedule=ScheduleConfig(kind="constant", learning_rate=0.01),
        )
        rounds = []
        for number in range(arguments.rounds):
            turn = number % len(arguments.arms)
            results = {}
            for arm in arguments.arms[turn:] + arguments.arms[:turn]:
                results[arm] = measure(arm, config, arguments.warm_up, arguments.seconds)
                print(f"{model}, round {number + 1}, {arm}: {json.dumps(results[arm])}", file=sys.stderr, flush=True)
            rounds.append(results)
        settings = config.model_dump(mode="json", exclude={"store", "runs", "name", "mode"})
        flags = {arm: PSYS[arm] for arm in arguments.arms if arm in PSYS}
        write(arguments.out / f"{model}.json", {"settings": settings, "flags": flags, "rounds": rounds})
        print("\n".join(report(model, arguments.arms, rounds)), flush=True)


def measure(arm: str, config: RunConfig, warm_up: float, seconds: float) -> dict[str, float]:
    """Run one arm: images/s of all its workers together and, of psys, MB that its servers hold when the window ends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config.model_copy(update={"runs": folder})
        write_yaml(config, folder / "config.yaml")
        commands: list[list[object]]
        if arm in PSYS:
            commands = [["launch/ps.py", "--config", folder / "config.yaml", *PSYS[arm]]]
        else:
            assert config.workers is not None
            baseline = ["-m", "benchmarks.baselines", arm, "--config", folder / "config.yaml"]
            commands = [[*baseline, "--rank", rank] for rank in range(config.workers)]

        def events() -> list[dict[str, Any]]:
            return [event for path in folder.glob("*/events.jsonl") for event in read_events(path)]

        with Running(commands, folder / "log", OMP_NUM_THREADS=config.threads) as running:
            running.wait(lambda: sum(event["event"] == "join" for event in events()) == config.workers, START_SECONDS)
            end = time.monotonic() + warm_up + seconds
            # Parsed only when the window must be almost over: reading takes time from who trains.
            running.wait(
                lambda: time.monotonic() > end and events()[-1]["seconds"] > opening(events(), warm_up) + seconds,
                timeout_seconds=2 * (warm_up + seconds) + START_SECONDS,
            )
            servers = list(running.named("psys-server"))
            resident = sum(process.memory_info().rss for process in servers)
        result = {"images_per_second": images_per_second(events(), warm_up, seconds)}
        return {**result, "server_mb": resident / 1e6} if servers else result


def opening(events: Sequence[dict[str, Any]], warm_up: float) -> float:
    """When the window opens, on the events' clock: `warm_up` seconds after the last worker has joined."""
    return float(max(event["seconds"] for event in events if event["event"] == "join")) + warm_up


def images_per_second(events: Sequence[dict[str, Any]], warm_up: float, seconds: float) -> float:
    """Sum over workers of images per second in the window.

    Raises PsysError if a worker left, a gradient was refused, or a worker updated less than twice in the window.
    """
    opens = opening(events, warm_up)
    inside = [event for event in events if opens <= event.get("seconds", 0.0) <= opens + seconds]
    stamps: dict[object, list[tuple[float, float]]] = {
        event["worker"]: [] for event in events if event["event"] == "join"
    }
    for event in inside:
        if event["event"] in ("leave", "refused"):
            raise PsysError(f"not all workers worked through the window: {event}")
        if event["event"] == "update":
            for worker in event["workers"]:
                stamps[worker].append((event["seconds"], event["images"] / len(event["workers"])))
    if idle := [worker for worker, of in stamps.items() if len(of) < 2]:
        raise PsysError(f"a window of {seconds:g} s is too short: less than two updates of {idle}")
    return sum(sum(images for _, images in of[1:]) / (of[-1][0] - of[0][0]) for of in stamps.values())


def report(model: str, arms: Sequence[str], rounds: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """The Markdown table of one model."""

    def cells(arm: str) -> list[str]:
        speeds = [results[arm]["images_per_second"] for results in rounds]
        alone = [results["alone"]["images_per_second"] for results in rounds if "alone" in results]
        shares = [speed / free for speed, free in zip(speeds, alone, strict=False)]
        memory = [results[arm]["server_mb"] for results in rounds if "server_mb" in results[arm]]
        return [
            arm,
            median_spread(speeds),
            median_spread(shares, digits=3) if shares else "",
            median_spread(memory, digits=0) if memory else "",
        ]

    return table([model, "images/s", "share of alone", "server MB"], map(cells, arms))


if __name__ == "__main__":
    with exit_with_message():
        main()
