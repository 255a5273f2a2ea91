"""What a grant tells its worker: how long the request waited, and whether the run ends before its last batch."""

import pytest

from psys.ps.controller import RunController
from psys.ps.coordinator import Coordinator
from psys.ps.effects import Effects
from psys.ps.events import UpdateApplied
from psys.ps.ledger import Ledger
from psys.ps.membership import Membership
from psys.ps.messages import Evaluated, Event, Grant, Joined, Push, PushPull, StepApplied, Stop
from psys.ps.optimizer import OptimizerConfig
from psys.ps.policy import make_policy
from psys.ps.rules import RunRules
from psys.ps.schedule import ScheduleConfig


class _Run:
    """A synchronous run of two workers, which stops once half an epoch brings no model better than `best`."""

    def __init__(self, batches: int = 8, best: Evaluated | None = None) -> None:
        ledger, policy = Ledger(1, samples=batches, batch_size=1), make_policy("sync", 0, prefetch=0)
        coordinator = Coordinator(ledger, policy, OptimizerConfig(), ScheduleConfig(), 1, awaited=2, slots=1)
        self._controller = RunController(RunRules(early_stopping=0.5), Membership(60.0), coordinator, best=best)
        for worker in ("worker0", "worker1"):
            self._controller.handle(0.0, Joined(worker))

    def ask(self, now: float, worker: str, push: Push | None = None) -> tuple[dict[str, Grant], Effects]:
        """The answers that follow, and what follows from the step applied."""
        effects = self._controller.handle(now, PushPull(worker, push))
        grants = {reply.worker: reply.grant for reply in effects.replies}
        return grants, self._controller.handle(now, StepApplied(effects.steps[-1].number)) if effects.steps else effects

    def stopped(self, event: Event | None) -> list[bool]:
        """What the workers' last grants say, when they have computed the round that was leased before the event."""
        self.ask(0.0, "worker0")
        leases = [grant.lease for grant in self.ask(0.0, "worker1")[0].values()]
        if event is not None:
            self._controller.handle(0.0, event)
        last = dict[str, Grant]()
        for worker, lease in zip(("worker0", "worker1"), leases, strict=True):
            assert lease
            last |= self.ask(0.0, worker, Push(lease, 1.0, 1, 1, 1.0))[0]
        assert [last[worker].lease for worker in ("worker0", "worker1")] == [None, None]
        return [last[worker].stopped for worker in ("worker0", "worker1")]


def test_the_last_grant_says_whether_the_run_was_stopped() -> None:
    best, worse = (Evaluated(version, version / 8, 2.0, 1 / version, images=10) for version in (2, 8))
    assert _Run(batches=2).stopped(None) == [False, False]
    assert _Run().stopped(Stop()) == [True, True]
    assert _Run(batches=2).stopped(Stop()) == [True, False]  # the second worker's batch was the last one
    assert _Run(best=best).stopped(worse) == [False, False]  # early stopping: nothing is left to train


def test_request_waits_from_its_first_call_to_the_grant() -> None:
    run = _Run()
    assert run.ask(1.0, "worker0")[0] == {}
    assert run.ask(3.0, "worker0")[0] == {}  # the same call again
    grants, _ = run.ask(3.5, "worker1")
    assert {worker: grant.wait_seconds for worker, grant in grants.items()} == {"worker0": 2.5, "worker1": 0.0}


def test_times_of_a_push_are_part_of_its_update() -> None:
    run = _Run()
    run.ask(0.0, "worker0")
    grants, _ = run.ask(0.0, "worker1")
    pushes = []
    for number, grant in enumerate(grants.values()):
        assert grant.lease
        pushes.append(Push(grant.lease, 1.0, 1, 1, 1.0, 0.5 + number, 0.25, 0.75))
    run.ask(1.0, "worker0", pushes[0])
    answers, effects = run.ask(2.0, "worker1", pushes[1])
    (update,) = [event for event in effects.log if isinstance(event, UpdateApplied)]
    assert (update.compute_seconds, update.wait_seconds, update.call_seconds) == ((0.5, 1.5), (0.25,) * 2, (0.75,) * 2)
    assert [answers[worker].wait_seconds for worker in ("worker0", "worker1")] == pytest.approx([1.0, 0.0])
