"""Images/s of a run on one machine, compared with processes that do not communicate and with torch's DDP.

`python -m benchmarks.throughput [--models resnet44 ...] [--workers 2] [--rounds 10] [--arms sync ...]`. All arms
train the same batches with the same augmentation, precision and optimizer, and each process has its share of the
cores. The arms of psys are started with launch/ps.py, the others with benchmarks/baselines.py. All arms are started
and warmed up; then they take turns of some seconds, and in a turn all other arms are suspended, so that other load on
the machine affects all arms alike. In a turn the images of a worker count from its first step to its last; a step is
over when its gradient is applied. A share is images/s divided by images/s of `alone` in the same round. Results:
results/<machine>/throughput.json, one part per model.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import ROOT, Running, count, median_spread, prepared_sample, results_path, table, write
from psys.config import write_yaml
from psys.cores import available_cores
from psys.errors import PsysError, exit_with_message
from psys.ps.events import PushRefused, UpdateApplied, WorkerLeft
from psys.ps.schedule import ScheduleConfig
from psys.run.config import RunConfig
from psys.run.events import read_events

BASELINES = ("alone", "ddp", "ddp+memory")
PSYS = {  # flags of launch/ps.py
    "sync": ["--mode", "sync"],
    "async": ["--mode", "async"],
    "ssp": ["--mode", "ssp"],
    "async+prefetch": ["--mode", "async", "--prefetch", "1"],
}
EVALUATION = {  # arms of benchmarks.evaluation
    "without evaluation": ["--snapshot-epochs", "1", "--evaluate-every", "0"],
    "evaluation": ["--snapshot-epochs", "1"],
}
EPOCHS = 5_000  # never reached: the benchmark interrupts the run after the last turn
VALIDATION_SHARE = 0.04  # leaves 1,920 images of the sample: 30 whole batches of 64
START_SECONDS = 120.0  # time limit for the start of an arm
NEVER = 3600.0  # heartbeat timeout in seconds: a suspended worker must not count as dead


class WorkerStep(NamedTuple):
    """One step of one worker, and when its gradient was applied; all steps of a run have the same clock."""

    worker: str
    seconds: float
    images: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet44", "resnet8", "mlp3748"])
    parser.add_argument("--arms", nargs="+", choices=[*BASELINES, *PSYS], default=[*BASELINES, *PSYS])
    parser.add_argument("--workers", type=count, default=2)
    parser.add_argument("--batch-size", type=count, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=count, default=10)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn")
    parser.add_argument("--warm-up", type=float, default=4.0, help="seconds before the first turn")
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=results_path("throughput"))
    arguments = parser.parse_args()
    arms = ["alone", *(arm for arm in arguments.arms if arm != "alone")]
    if len(arms) == 1:
        parser.error("--arms: expected at least one arm besides alone")
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
            heartbeat_timeout=NEVER,
            schedule=ScheduleConfig(kind="constant", learning_rate=0.01),
        )
        with tempfile.TemporaryDirectory() as folder:
            rounds = compare(arms, config, arguments.rounds, arguments.warm_up, arguments.seconds, Path(folder))
        settings = config.model_dump(mode="json", exclude={"store", "runs", "name", "mode"})
        flags = {arm: PSYS[arm] for arm in arms if arm in PSYS}
        write(arguments.out, {"settings": settings, "flags": flags, "rounds": rounds}, part=model)
        print("\n".join(report(model, arms, rounds)), flush=True)


def compare(
    arms: Sequence[str], config: RunConfig, rounds: int, warm_up: float, seconds: float, folder: Path
) -> list[dict[str, dict[str, float]]]:
    """By round and arm: images/s of all workers together and, for psys, resident MB of the servers after the turn.

    The files of an arm are written to the folder of its name below `folder`.
    """
    with ExitStack() as stack:
        started: dict[str, Running] = {}
        for arm in arms:
            started[arm] = stack.enter_context(start(arm, config, folder / arm))
            started[arm].wait(partial(all_started, config, folder / arm), START_SECONDS)
            turn(started[arm], warm_up)
        memory: list[dict[str, float]] = []
        for number in range(rounds):
            memory.append({})
            for arm, running in started.items():
                turn(running, seconds)
                if servers := list(running.named("psys-server")):
                    memory[-1][arm] = sum(process.memory_info().rss for process in servers) / 1e6
            print(f"{config.model}, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        pause = (len(arms) - 1) * seconds
        # The first turn was the warm-up.
        speeds = {arm: speed_by_turn(list(steps_of(folder / arm)), pause)[1:] for arm in arms}
    if wrong := [arm for arm in arms if len(speeds[arm]) != rounds]:
        raise PsysError(f"turns of {seconds:g} s are too short for {', '.join(wrong)}: use a larger --seconds")
    return [
        {
            arm: {
                "images_per_second": speeds[arm][number],
                **({"server_mb": memory[number][arm]} if arm in memory[number] else {}),
            }
            for arm in arms
        }
        for number in range(rounds)
    ]


def start(arm: str, config: RunConfig, folder: Path) -> Running:
    """Start the processes of an arm; all files they write are below `folder`."""
    folder.mkdir()
    write_yaml(config.model_copy(update={"runs": folder}), folder / "config.yaml")
    commands: list[list[object]]
    if flags := {**PSYS, **EVALUATION}.get(arm):
        commands = [["launch/ps.py", "--config", folder / "config.yaml", *flags]]
    else:
        assert config.workers is not None
        baseline = ["-m", "benchmarks.baselines", arm, "--config", folder / "config.yaml"]
        commands = [[*baseline, "--rank", rank] for rank in range(config.workers)]
    return Running(commands, folder / "log", OMP_NUM_THREADS=config.threads)


def turn(running: Running, seconds: float) -> None:
    """Run the processes for `seconds`, then suspend the processes."""
    running.resume()
    end = time.monotonic() + seconds
    running.wait(lambda: time.monotonic() > end, timeout_seconds=2 * seconds)
    running.pause()


def all_started(config: RunConfig, folder: Path) -> bool:
    """Whether every worker has made a step."""
    return len({step.worker for step in steps_of(folder)}) == config.workers


def steps_of(folder: Path) -> Iterator[WorkerStep]:
    """The steps of an arm until now, from the events of psys or the files of the baselines.

    Raises PsysError if a worker left or a gradient was refused.
    """
    for path in folder.glob("*/events.jsonl"):
        for event in read_events(path):
            if isinstance(event, WorkerLeft | PushRefused):
                raise PsysError(f"a worker left or a gradient was refused during the measurement: {event}")
            if isinstance(event, UpdateApplied):
                for worker in event.workers:
                    yield WorkerStep(worker, event.seconds, event.images / len(event.workers))
    for path in folder.glob("*/steps.txt"):
        *lines, _ = path.read_text().split("\n")  # the last line may not be complete
        for line in lines:
            seconds, images = line.split()
            yield WorkerStep(path.parent.name, float(seconds), float(images))


def speed_by_turn(steps: Sequence[WorkerStep], pause: float) -> list[float]:
    """Images per second of all workers in each turn; turns are at least `pause` seconds apart.

    Raises PsysError if a worker made less than two steps in a turn.
    """
    workers = {step.worker for step in steps}
    steps = sorted(steps, key=attrgetter("seconds"))
    turns = [list(steps[:1])]
    for before, step in pairwise(steps):
        if step.seconds - before.seconds > pause / 2:
            turns.append([])
        turns[-1].append(step)
    return [sum(speed(turn, worker) for worker in workers) for turn in turns]


def speed(turn: Sequence[WorkerStep], worker: str) -> float:
    """Images per second of one worker, from its first step in a turn to its last."""
    own = [step for step in turn if step.worker == worker]
    if len(own) < 2:
        raise PsysError(f"a turn is too short: worker {worker} made less than two steps; use a larger --seconds")
    return sum(step.images for step in own[1:]) / (own[-1].seconds - own[0].seconds)


def report(model: str, arms: Sequence[str], rounds: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """The Markdown table of one model."""

    def cells(arm: str) -> list[str]:
        speeds = [results[arm]["images_per_second"] for results in rounds]
        alone = [results["alone"]["images_per_second"] for results in rounds]
        shares = [speed / free for speed, free in zip(speeds, alone, strict=True)]
        memory = [results[arm]["server_mb"] for results in rounds if "server_mb" in results[arm]]
        return [
            arm,
            median_spread(speeds),
            median_spread(shares, digits=3),
            median_spread(memory, digits=0) if memory else "",
        ]

    return table([model, "images/s", "share of alone", "server MB"], map(cells, arms))


if __name__ == "__main__":
    with exit_with_message():
        main()
