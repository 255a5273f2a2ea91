"""Fault plans, valid and invalid."""

import math
from pathlib import Path
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psys.config import write_yaml
from psys.errors import PsysError
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.faults import FaultPlan, read_plan

STRAGGLERS = """
slow_workers:
  - {worker: 0, factor: 5}
  - {factor: 1.5, spread: 0.5}
"""

PLAN = """
faults:
  - {worker: 1, step: 5, kind: kill}
  - {worker: 0, step: 2, kind: slow, seconds: 0.25}
  - {worker: 0, step: 2, kind: nan}
  - worker: 0
    step: 3
    kind: drop_reply
"""


def write_plan(folder: Path, text: str) -> Path:
    path = folder / "faults.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_plan_lists_the_faults_of_a_worker_at_a_step(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path, PLAN))
    assert [fault.kind for fault in plan.at(0, 2)] == ["slow", "nan"]  # in the order of the plan
    assert [fault.kind for fault in plan.at(1, 5)] == ["kill"]
    assert plan.at(0, 2)[0].seconds == 0.25
    assert plan.at(1, 2) == plan.at(2, 5) == []
    write_yaml(plan, tmp_path / "again.yaml")
    assert read_plan(tmp_path / "again.yaml") == plan


def test_factors_of_a_slow_worker_multiply_and_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path, STRAGGLERS))
    slow, other = ([plan.slowdown(worker, step, seed=3) for step in range(4000)] for worker in (0, 1))
    assert slow == [plan.slowdown(0, step, seed=3) for step in range(4000)]
    assert plan.slowdown(0, 0, seed=4) != slow[0]
    assert mean(slow) == pytest.approx(7.5, rel=0.05)
    assert mean(other) == pytest.approx(1.5, rel=0.05)
    assert stdev(other) / mean(other) == pytest.approx(0.5, rel=0.1)
    assert slow[0] / 5 != pytest.approx(other[0])  # each worker has draws of its own


@given(st.floats(0, 10), st.integers(0, 2**32 - 1), st.integers(0, 100))
def test_every_spread_gives_a_finite_slowdown(spread: float, seed: int, step: int) -> None:
    plan = FaultPlan.model_validate({"slow_workers": [{"worker": 1, "factor": 2, "spread": spread}]})
    assert 0 <= plan.slowdown(1, step, seed) < math.inf
    assert plan.slowdown(0, step, seed) == 1


def test_slow_worker_that_a_new_run_does_not_have_is_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path, STRAGGLERS.replace("worker: 0", "worker: 2"))
    with pytest.raises(PsysError, match=r"'slow_workers' names worker 2, and the run has workers 0 to 1 \(in .*faults"):
        RunDirectory.create(RunConfig(runs=tmp_path, name="r", faults=path, workers=2))
    RunDirectory.create(RunConfig(runs=tmp_path, name="r", faults=path, workers=3))


def test_missing_and_empty_plans_have_no_faults(tmp_path: Path) -> None:
    assert read_plan(None) == FaultPlan()
    assert read_plan(write_plan(tmp_path, "")) == FaultPlan()
    assert read_plan(write_plan(tmp_path, "faults: []")) == FaultPlan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fault: []", "unknown setting 'fault', did you mean 'faults'"),
        ("faults: kill", "setting 'faults': "),
        ("faults: [kill]", "setting 'faults.0': "),
        ("faults: [{worker: 0, step: 1}]", "setting 'faults.0.kind': Field required"),
        ("faults: [{step: 1, kind: kill}]", "setting 'faults.0.worker': Field required"),
        ("faults: [{worker: 0, kind: kill}]", "setting 'faults.0.step': Field required"),
        ("faults: [{worker: 0, step: 1, kind: die}]", "setting 'faults.0.kind': Input should be 'kill', 'hang'"),
        ("faults: [{worker: -1, step: 1, kind: kill}]", "setting 'faults.0.worker': .*, got -1"),
        ("faults: [{worker: 0, step: 1.5, kind: kill}]", "setting 'faults.0.step': .*, got 1.5"),
        ("faults: [{worker: 0, step: 1, kind: slow, seconds: 0}]", "setting 'faults.0.seconds': .*, got 0"),
        ("faults: [{worker: 0, step: 1, kind: slow, seconds: .inf}]", "setting 'faults.0.seconds': .*, got inf"),
        ("faults: [{worker: 0, step: 1, kind: slow, seconds: 9999}]", "setting 'faults.0.seconds': .*, got 9999"),
        ("faults: [{worker: 0, step: 1, kind: kill, at: 3}]", "unknown setting 'faults.0.at'"),
        ("slow_workers: [{factor: 0.5}]", "setting 'slow_workers.0.factor': .*, got 0.5"),
        ("slow_workers: [{worker: -1}]", "setting 'slow_workers.0.worker': .*, got -1"),
        ("slow_workers: [{spread: .nan}]", "setting 'slow_workers.0.spread': .*, got nan"),
        ("slow_workers: [{step: 3}]", "unknown setting 'slow_workers.0.step'"),
        (f"{PLAN}  - {{worker: x, step: 1, kind: kill}}", "setting 'faults.4.worker': .*, got 'x'"),
        ("[kill]", "expected a mapping"),
        ("faults: [", "is not YAML"),
        ("faults: !!python/object/apply:os.getpid []", "is not YAML"),
    ],
)
def test_invalid_plan_is_refused_with_setting_and_file(tmp_path: Path, text: str, message: str) -> None:
    path = write_plan(tmp_path, text)
    with pytest.raises(PsysError, match=message) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read config .*faults\.yaml"):
        read_plan(tmp_path / "faults.yaml")
