"""What the runs of a study left on disk, as values."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from psys.config import read_yaml, validate
from psys.errors import PsysError
from psys.ps.events import LeasesReturned, RunEvent, SnapshotEvaluated, UpdateApplied
from psys.run.curves import EpochPoint
from psys.run.directory import RunDirectory
from psys.run.events import read_events, surviving
from psys.run.faults import read_plan
from psys.tradeoff.config import StudyConfig
from psys.tradeoff.plan import tuning_trials
from psys.tradeoff.record import TrialLog, TrialRecord
from psys.tradeoff.times import TimeToTarget, time_to_target


class WorkerTime(NamedTuple):
    """Seconds that a worker computed, waited for others, and communicated."""

    compute: float
    wait: float
    communicate: float


@dataclass(frozen=True)
class Outcome:
    """What one evaluated run reached, and what it cost. Accuracies are shares, times are seconds."""

    settings: Mapping[str, Any]
    """by dotted name, without the name and the place of the run; the fault plan as `faults` and `slow_workers`"""
    points: tuple[EpochPoint, ...]
    accuracy: float
    """on the test images, of the snapshot that is best on held-out images, or the last one where there are none"""
    test_images: int
    right: NDArray[np.bool_] | None
    """(test images,): whether the best snapshot was right; None: the run did not record it"""
    held_out_images: int
    seconds: float
    images_per_second: float
    workers: int
    learning_rate: float
    """the highest that an update had"""
    staleness: Mapping[int, int]
    """gradients by staleness in updates"""
    worker_times: Mapping[str, WorkerTime] | None
    """by worker; None: the run did not record it"""
    batches: Mapping[str, int]
    """how often batches were applied, reissued, late, lost; empty for a run that was killed"""
    late: Mapping[str, tuple[int, ...]]
    """by worker: the batches that the policy gave up as late, in the order of the events; they were computed again"""
    environment: Mapping[str, Any]
    """machine, versions and commit as `psys.run.environment` writes them; empty: not recorded"""
    diverged: float | None
    """the epoch after which the training diverged"""

    @property
    def worker_hours(self) -> float:
        """Workers times hours: what the training cost."""
        return self.workers * self.seconds / 3600

    @property
    def staleness_mean(self) -> float:
        """Over all gradients."""
        return sum(versions * gradients for versions, gradients in self.staleness.items()) / sum(
            self.staleness.values()
        )

    def time_to(self, target: float) -> TimeToTarget | None:
        """When the accuracy on held-out images reached the target; None: the run has no held-out images."""
        points = [(point.train_seconds, point.validation_accuracy) for point in self.points]
        held_out = [(seconds, accuracy) for seconds, accuracy in points if accuracy is not None]
        if not held_out:
            return None
        return time_to_target([seconds for seconds, _ in held_out], [accuracy for _, accuracy in held_out], target)


@dataclass(frozen=True)
class EndedTrial:
    """One run of one arm, condition and seed; without an outcome it failed, for `reason`."""

    name: str
    arm: str
    condition: str
    seed: int
    tuning: Any
    """the value that a sweep tried; None: a trial of the comparison"""
    reason: str | None
    load: float | None
    """share of the machine's cores that were busy before the start, 0 to 1; None: not recorded"""
    host: str
    outcome: Outcome | None


@dataclass(frozen=True)
class Study:
    """The plan of a study, and its trials that have ended."""

    name: str
    arms: Mapping[str, Mapping[str, Any]]
    """by name: the settings in which the arm differs from the base"""
    reference: str | None
    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    targets: tuple[float, ...]
    margin: float | None
    tuned: str | None
    """the setting that a sweep tuned"""
    tuning_trials: int
    """how many each arm has"""
    trials: tuple[EndedTrial, ...]


def read_outcome(path: Path) -> Outcome:
    """The outcome of the run in a directory. Raises PsysError if it is none, or was not evaluated yet."""
    run = RunDirectory(path)
    if not run.config_file.exists():
        raise PsysError(f"{path} is not the directory of a run: it has no {run.config_file.name}")
    config, result = run.config(), run.result()
    plan = read_plan(config.faults)
    events = surviving(read_events(run.events))
    updates = [event for event in events if isinstance(event, UpdateApplied)]
    evaluations = [event for event in events if isinstance(event, SnapshotEvaluated)]
    try:
        return Outcome(
            settings=_flat(
                config.model_dump(mode="json", exclude={"name", "runs", "faults"}) | plan.model_dump(mode="json")
            ),
            points=tuple(EpochPoint(**point) for point in result["points"]),
            accuracy=result["best"]["test"]["accuracy"],
            test_images=result["best"]["test"]["images"],
            right=_right(path / "right.npz"),
            held_out_images=max((event.images for event in evaluations), default=0),
            seconds=result["train_seconds"],
            images_per_second=result["images_per_second"],
            workers=result["workers"],
            learning_rate=max(update.learning_rate for update in updates),
            staleness=dict(sorted(Counter(versions for update in updates for versions in update.staleness).items())),
            worker_times=_worker_times(result),
            batches=result["batches"],
            late=_late(events),
            environment=read_environment(path),
            diverged=result["diverged"]["epoch"] if result["diverged"] else None,
        )
    except (KeyError, TypeError, ValueError):
        raise PsysError(
            f"{run.result_file} is not a result of this version: remove it, and run `psys evaluate {path}`"
        ) from None


def read_study(folder: Path) -> Study:
    """The study in a directory, with the outcomes of its trials that have ended.

    Raises PsysError if there is no study. A trial whose run cannot be read counts as failed.
    """
    file = folder / "study.yaml"
    config = validate(StudyConfig, read_yaml(file), str(file))
    return Study(
        name=config.name,
        arms=config.arms,
        reference=config.reference,
        conditions=tuple(config.stragglers),
        seeds=config.seeds,
        targets=config.targets,
        margin=config.margin,
        tuned=config.tuning.setting if config.tuning else None,
        tuning_trials=len(tuning_trials(config)) // len(config.arms),
        trials=tuple(_trial(folder, record) for record in TrialLog(folder).records.values()),
    )


def _trial(folder: Path, record: TrialRecord) -> EndedTrial:
    outcome, reason = None, record.reason
    if record.status == "done":
        try:
            outcome = read_outcome(folder / "trials" / record.trial)
        except PsysError as error:
            reason = str(error)
    return EndedTrial(
        name=record.trial,
        arm=record.arm,
        condition=record.condition,
        seed=record.seed,
        tuning=record.tuning,
        reason=reason,
        load=record.load,
        host=record.host,
        outcome=outcome,
    )


def read_environment(folder: Path) -> dict[str, Any]:
    """What a run or a study ran on, by its environment.json; empty if there is none."""
    try:
        content = json.loads((folder / "environment.json").read_bytes())
    except (OSError, ValueError):
        content = None
    return content if isinstance(content, dict) else {}


def _right(path: Path) -> NDArray[np.bool_] | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays["best"], np.bool_)
    except FileNotFoundError:
        return None


def _late(events: Iterable[RunEvent]) -> dict[str, tuple[int, ...]]:
    late: dict[str, tuple[int, ...]] = {}
    for event in events:
        for lease in event.leases if isinstance(event, LeasesReturned) and event.late else ():
            late[lease.worker] = (*late.get(lease.worker, ()), lease.batch)
    return dict(sorted(late.items()))


def _worker_times(result: Mapping[str, Any]) -> dict[str, WorkerTime] | None:
    workers = {worker: WorkerTime(**seconds) for worker, seconds in result["time"]["workers"].items()}
    return workers if any(map(any, workers.values())) else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; lists and empty groups are values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all, in their order."""
    every = list(settings)
    names = dict.fromkeys(name for each in every for name in each)
    return [name for name in names if any(each.get(name) != every[0].get(name) for each in every)]
