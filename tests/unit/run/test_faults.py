"""Fault plans, right and wrong, and what a child of this process suffers by them."""

import os
import signal
from pathlib import Path

import pytest

from psys.config import write_yaml
from psys.errors import PsysError
from psys.run.faults import Fault, FaultPlan, read_plan, suffer

PLAN = """
faults:
  - {worker: 1, step: 5, kind: kill}
  - {worker: 0, step: 2, kind: slow, seconds: 0.25}
  - {worker: 0, step: 2, kind: nan}
  - worker: 0
    step: 3
    kind: drop_reply
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "faults.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_plan_says_what_happens_to_whom_at_which_step(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, PLAN))
    assert [fault.kind for fault in plan.at(0, 2)] == ["slow", "nan"]  # in the order of the plan
    assert [fault.kind for fault in plan.at(1, 5)] == ["kill"]
    assert plan.at(0, 2)[0].seconds == 0.25
    assert plan.at(1, 2) == plan.at(2, 5) == []
    write_yaml(plan, tmp_path / "again.yaml")
    assert read_plan(tmp_path / "again.yaml") == plan


def test_no_plan_is_no_faults(tmp_path: Path) -> None:
    assert read_plan(None) == FaultPlan()
    assert read_plan(written(tmp_path, "")) == FaultPlan()
    assert read_plan(written(tmp_path, "faults: []")) == FaultPlan()


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
        (f"{PLAN}  - {{worker: x, step: 1, kind: kill}}", "setting 'faults.4.worker': .*, got 'x'"),
        ("[kill]", "expected a mapping"),
        ("faults: [", "is not YAML"),
        ("faults: !!python/object/apply:os.getpid []", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_plan_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PsysError, match=message) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsysError, match=r"cannot read config .*faults\.yaml"):
        read_plan(tmp_path / "faults.yaml")


def suffering(fault: Fault) -> int:
    """The process id of a child that suffers it, and then ends."""
    if not (pid := os.fork()):
        try:
            suffer(fault)
        finally:
            os._exit(0)
    return pid


def test_a_kill_is_one() -> None:
    _, status = os.waitpid(suffering(Fault(worker=0, step=0, kind="kill")), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_who_hangs_stands_still_and_goes_on() -> None:
    pid = suffering(Fault(worker=0, step=0, kind="hang", seconds=0.3))
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("kind", ["slow", "nan", "drop_reply"])
def test_the_others_are_survived(kind: str) -> None:
    suffer(Fault.model_validate({"worker": 0, "step": 0, "kind": kind, "seconds": 0.01}))
