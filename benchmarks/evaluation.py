"""Cost of evaluation while a run trains: images/s with evaluation at its default and without it.

`python -m benchmarks.evaluation [--rounds 12] [--seconds 20]`. Both arms write a snapshot an epoch and differ in
`--evaluate-every` only; they take turns as in benchmarks.throughput. The first evaluation comes during the warm-up.
Results: results/<machine>/evaluation.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, count, median_spread, prepared_sample, results_path, table, write
from benchmarks.throughput import EVALUATION, NEVER, VALIDATION_SHARE, compare
from psys.cores import available_cores
from psys.errors import exit_with_message
from psys.ps.events import SnapshotEvaluated
from psys.ps.schedule import ScheduleConfig
from psys.run.config import RunConfig
from psys.run.events import read_events

OFF, DEFAULT = EVALUATION


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.evaluation", description=__doc__)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--rounds", type=count, default=12)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a turn")
    parser.add_argument("--warm-up", type=float, default=140.0, help="seconds before the first turn")
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "sample", help="prepared from the sample")
    parser.add_argument("--out", type=Path, default=results_path("evaluation"))
    arguments = parser.parse_args()
    prepared_sample(arguments.store)
    config = RunConfig(
        store=arguments.store.absolute(),
        model=arguments.model,
        workers=available_cores(),
        threads=1,
        precision="fp32",
        epochs=100_000,
        validation_share=VALIDATION_SHARE,
        heartbeat_timeout=NEVER,
        schedule=ScheduleConfig(kind="constant", learning_rate=0.01),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rounds = compare([OFF, DEFAULT], config, arguments.rounds, arguments.warm_up, arguments.seconds, folder)
        events = [event for path in (folder / DEFAULT).glob("*/events.jsonl") for event in read_events(path)]
    evaluations = sum(isinstance(event, SnapshotEvaluated) for event in events)
    results = {"model": arguments.model, "seconds": arguments.seconds, "evaluations": evaluations, "rounds": rounds}
    write(arguments.out, results)
    speeds = {arm: median_spread([each[arm]["images_per_second"] for each in rounds]) for arm in (OFF, DEFAULT)}
    print(
        "\n".join(table(["", "images/s"], speeds.items())),
        f"cost: {cost(rounds):+.2%}, evaluations: {evaluations}",
        sep="\n",
    )


def cost(rounds: list[dict[str, Any]]) -> float:
    """Median over the rounds of the share of images/s that evaluation takes."""
    speeds = [(each[OFF]["images_per_second"], each[DEFAULT]["images_per_second"]) for each in rounds]
    return float(statistics.median(1 - default / off for off, default in speeds))


if __name__ == "__main__":
    with exit_with_message():
        main()
