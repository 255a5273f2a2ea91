"""Speed and memory of preparing images with Ray actors: `python -m benchmarks.segment_throughput speed|whole`.

`speed` prepares the shards of the first images of CIFAR-10 with a plain loop in one process and with actors whose
driver saves the results as a preparation does. The two arms alternate, each in a new process, and are timed from the
moment at which all processes are ready. `whole` runs `psys prepare` on `--images` images and reads its memory twice a
second: the sum of the proportional set sizes of the driver, the actors and Ray's own processes, which counts the
object store once. An interrupted `whole` continues when it is started again, and the seconds of all its runs are
added. Results: results/<machine>/segment_throughput.json, parts "speed" and "whole-<images>". The data set must be
fetched first: `psys data fetch cifar10`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil

from benchmarks.measure import ROOT, Running, median_spread, read_parts, results_path, table, write
from psys.data.dataset import Dataset, read_dataset, write_dataset
from psys.errors import exit_with_message
from psys.segment.actors import Pool, ray_session
from psys.segment.partial import PartialStore
from psys.segment.plan import Plan
from psys.segment.task import ImageTask, Recipe, prepare_images

SIZE = 32
LIMIT_SECONDS = 4 * 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.segment_throughput", description=__doc__)
    parser.add_argument("part", choices=["speed", "whole"])
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset", type=Path, default=ROOT / "datasets" / "cifar10")
    parser.add_argument("--stores", type=Path, default=ROOT / "stores", help="for whole")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help="time limit of whole")
    parser.add_argument("--scale", type=float, help="of the segmentation, for whole (default: the project's)")
    parser.add_argument("--out", type=Path, default=results_path("segment_throughput"))
    parser.add_argument("--arm", help="internal: the arm of a child process")
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(run_arm(arguments.arm, plan_of(arguments.dataset, arguments.images), arguments.actors)))
    elif arguments.part == "speed":
        speed(arguments)
    else:
        whole(arguments)


def speed(arguments: argparse.Namespace) -> None:
    """Measure rounds of both arms, write the part "speed" and print the table."""
    rounds = []
    for number in range(arguments.rounds):
        rounds.append({arm: in_a_process(arm, arguments) for arm in ("plain", "actors")})
        print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
    ratios = [each["actors"]["images_per_second"] / each["plain"]["images_per_second"] for each in rounds]
    settings = {"images": arguments.images, "actors": arguments.actors}
    write(arguments.out, {**settings, "rounds": rounds, "ratios": ratios}, part="speed")
    rows = [
        (arm, *(median_spread([each[arm][what] for each in rounds]) for what in ("images_per_second", "cpu_ms")))
        for arm in ("plain", "actors")
    ]
    print("\n".join(table(["arm", "images/s", "CPU ms an image"], rows)))
    print(f"{arguments.actors} actors / plain loop: {median_spread(ratios, digits=3)}")


def in_a_process(arm: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Figures of one arm, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.segment_throughput", "speed", "--arm", arm]
    command += ["--images", str(arguments.images), "--actors", str(arguments.actors)]
    command += ["--dataset", str(arguments.dataset.absolute())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_arm(arm: str, plan: Plan, actors: int) -> dict[str, float]:
    """Prepare every shard of a plan; images/s, and CPU ms per image of all processes together."""
    if arm == "plain":
        cv2.setNumThreads(1)
        tasks = [plan.load(planned) for planned in plan]
        prepare_images(tasks[0], plan.recipe)
        begin, cpu = time.perf_counter(), cpu_seconds()
        for task in tasks:
            prepare_images(task, plan.recipe)
        return figures(plan, time.perf_counter() - begin, cpu_seconds() - cpu)
    with (
        tempfile.TemporaryDirectory() as folder,
        PartialStore.opened(Path(folder) / "shards") as partial,
        ray_session(actors, None),
    ):
        pool = Pool(actors, plan.recipe, print)

        def until_ready() -> Iterator[tuple[str, ImageTask]]:
            while pool.ready < actors:
                yield "", plan.load(next(iter(plan))).row(0)

        for _ in pool.prepare(until_ready()):
            pass
        begin, cpu, of_actors = time.perf_counter(), cpu_seconds(), cpu_seconds("ray::Segmenter")
        for key, prepared in pool.prepare((planned.key, plan.load(planned)) for planned in plan):
            partial.save(key, prepared)
        seconds = time.perf_counter() - begin
        of_actors = cpu_seconds("ray::Segmenter") - of_actors
        return {**figures(plan, seconds, cpu_seconds() - cpu), "actors_cpu_ms": 1000 * of_actors / plan.images}


def figures(plan: Plan, seconds: float, cpu: float) -> dict[str, float]:
    """Figures that are reported for an arm."""
    return {"images_per_second": plan.images / seconds, "cpu_ms": 1000 * cpu / plan.images, "seconds": seconds}


def cpu_seconds(name: str = "") -> float:
    """CPU seconds of this process and its descendants whose names start with `name`."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:2]) if process.name().startswith(name) else 0.0
        except psutil.NoSuchProcess:
            continue
    return total


def whole(arguments: argparse.Namespace) -> None:
    """Run `psys prepare` on the first images; add its time and peak memory to the part "whole-<images>"."""
    name = f"throughput-{arguments.images}" + (f"-scale{arguments.scale:g}" if arguments.scale else "")
    source = arguments.stores / f"{name}-source"
    if not source.exists():
        write_dataset(first_of(read_dataset(arguments.dataset), arguments.images), source)
    part = name.replace("throughput", "whole")
    saved = read_parts(arguments.out).get(part, {"done": True})
    before = [] if saved["done"] else saved["runs"]
    command = ["-m", "psys", "prepare", "--source", source, "--stores", arguments.stores, "--name", name]
    command += ["--segment.scale", arguments.scale] if arguments.scale else []
    log = arguments.stores / f"{name}.log"
    taken: list[float] = []
    begin = time.monotonic()

    def over() -> bool:
        taken.append(memory_mb(running))
        return bool((arguments.stores / name).exists() or time.monotonic() - begin > arguments.seconds)

    with Running([[*command, "--actors", arguments.actors]], log) as running:
        running.wait(over, arguments.seconds + 60, poll_seconds=0.5)
        seconds = time.monotonic() - begin
    done = (arguments.stores / name).exists()
    run = {"seconds": seconds, "peak_mb": max(taken), "median_mb": statistics.median(taken)}
    runs = [*before, run]
    total = sum(each["seconds"] for each in runs)
    results = {"images": arguments.images, "actors": arguments.actors, "done": done, "seconds": total, "runs": runs}
    write(arguments.out, results, part)
    state = "done" if done else "not done"
    peak = max(each["peak_mb"] for each in runs)
    row = [arguments.images, state, len(runs), f"{total:.0f}", f"{peak:.0f}", f"{run['median_mb']:.0f}"]
    print("\n".join(table(["images", "state", "runs", "seconds", "peak MB", "median MB of the last run"], [row])))


def memory_mb(running: Running) -> float:
    """Memory of the commands and their descendants in MB, shared pages counted once."""
    total = 0.0
    for process in running.processes():
        try:
            total += process.memory_full_info().pss / 1e6
        except psutil.Error:
            continue
    return total


def plan_of(dataset: Path, images: int) -> Plan:
    """The plan (shards) of the first images of a data set."""
    return Plan(first_of(read_dataset(dataset), images), {}, Recipe(SIZE), "benchmark")


def first_of(dataset: Dataset, images: int) -> Dataset:
    """A data set of `images` images, training and test images in the proportion of the whole data set."""
    train, test = dataset.train, dataset.test
    in_test = images * len(test.labels) // (len(train.labels) + len(test.labels))
    return Dataset(
        dataset.name,
        dataset.origin,
        dataset.root,
        dataset.classes,
        train.take(np.arange(images - in_test)),
        test.take(np.arange(in_test)),
    )


if __name__ == "__main__":
    with exit_with_message():
        main()
