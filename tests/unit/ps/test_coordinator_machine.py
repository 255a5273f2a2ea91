"""Random joins, pushes, retries and deaths in every mode: nothing lost, nor twice, nor too stale, and no deadlock."""

import math

import pytest
import torch
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from psys.ps.coordinator import Coordinator, Decision, Update
from psys.ps.ledger import Lease, Ledger, Receipt
from psys.ps.policy import make_policy
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import OptimizerConfig, ParameterStore

BATCHES_PER_EPOCH, EPOCHS = 5, 3
BATCHES = BATCHES_PER_EPOCH * EPOCHS
BOUND = {"sync": lambda s: 0, "ssp": lambda s: s, "async": lambda s: BATCHES}


class CoordinatorMachine(RuleBasedStateMachine):
    """SGD at rate 1 on one parameter a batch: the gradient of batch b is -1 at b, so parameter b counts b's uses."""

    lapsed = Bundle("lapsed")  # leases whose holder died or that were pushed already: a late or repeated push

    @initialize(mode=st.sampled_from(["sync", "async", "ssp"]), staleness=st.integers(0, 3), awaited=st.integers(0, 3))
    def start(self, mode: str, staleness: int, awaited: int, kind: str = "constant") -> None:
        self.mode, self.bound = mode, BOUND[mode](staleness)
        ledger = Ledger(EPOCHS, samples=BATCHES_PER_EPOCH * 4 - 1, batch_size=4)
        self.store = ParameterStore(
            torch.zeros(BATCHES), BATCHES, torch.zeros(1), OptimizerConfig(momentum=0, nesterov=False)
        )
        schedule = ScheduleConfig(kind=kind, learning_rate=1.0)  # type: ignore[arg-type]
        self.coordinator = Coordinator(
            ledger,
            make_policy(mode, staleness),
            self.store,
            schedule,
            EPOCHS,
            awaited,  # type: ignore[arg-type]
        )
        self.awaited = awaited
        self.computing: dict[str, Lease] = {}
        self.waiting: set[str] = set()
        self.updates: list[Update] = []
        self.born = 0
        self.accepted: set[int] = set()

    def follow(self, decision: Decision) -> None:
        self.updates += decision.updates
        for worker, lease in decision.grants.items():
            self.waiting.remove(worker)
            if lease is not None:
                assert lease.worker == worker
                self.computing[worker] = lease

    def ask(self, worker: str) -> None:
        self.waiting.add(worker)
        self.follow(self.coordinator.request(worker))

    def deliver(self, lease: Lease) -> Receipt:
        gradient = torch.zeros(BATCHES)
        gradient[lease.batch] = -1
        receipt, decision = self.coordinator.push(lease, gradient, torch.full((1,), float(lease.batch + 1)))
        self.follow(decision)
        return receipt

    @rule()
    def join(self) -> None:
        self.born += 1
        self.ask(f"worker{self.born}")

    @rule(target=lapsed, pick=st.randoms(use_true_random=False))
    def push(self, pick) -> Lease:
        assume(self.computing)
        worker = pick.choice(sorted(self.computing))
        lease = self.computing.pop(worker)
        assert self.deliver(lease) is Receipt.ACCEPTED
        assert lease.batch not in self.accepted
        self.accepted.add(lease.batch)
        self.ask(worker)
        return lease

    @rule(target=lapsed, pick=st.randoms(use_true_random=False))
    def die_computing(self, pick) -> Lease:
        assume(self.computing)
        worker = pick.choice(sorted(self.computing))
        lease = self.computing.pop(worker)
        self.follow(self.coordinator.leave(worker))
        return lease

    @rule(pick=st.randoms(use_true_random=False))
    def die_waiting(self, pick) -> None:
        assume(self.waiting)
        worker = pick.choice(sorted(self.waiting))
        self.waiting.remove(worker)
        self.follow(self.coordinator.leave(worker))

    @rule(lease=lapsed)
    def push_again(self, lease: Lease) -> None:
        expected = Receipt.DUPLICATE if lease.batch in self.accepted else Receipt.EXPIRED
        assert self.deliver(lease) is expected

    @rule(pick=st.randoms(use_true_random=False))
    def ask_again_for_the_answer_was_lost(self, pick) -> None:
        assume(self.computing)
        worker = pick.choice(sorted(self.computing))
        del self.computing[worker]
        self.ask(worker)

    @rule(lease=consumes(lapsed))
    def come_back_from_the_dead(self, lease: Lease) -> None:
        if lease.worker not in self.computing and lease.worker not in self.waiting:
            self.deliver(lease)
            self.ask(lease.worker)

    @rule()
    def stop_waiting_for_latecomers(self) -> None:
        self.awaited = 0
        self.follow(self.coordinator.stop_waiting())

    @invariant()
    def nothing_twice(self) -> None:
        applied = [lease.batch for update in self.updates for lease in update.leases]
        assert len(applied) == len(set(applied))
        proof = self.coordinator.ledger.proof()
        assert (proof.applied, proof.lost) == (len(applied), 0)

    @invariant()
    def never_too_stale(self) -> None:
        assert all(0 <= s <= self.bound for update in self.updates for s in update.staleness)

    @invariant()
    def somebody_works(self) -> None:
        started = self.computing or self.updates or len(self.waiting) >= self.awaited
        if self.waiting and started and not self.coordinator.over:
            assert self.computing

    @invariant()
    def parameters_hold_each_update_whole(self) -> None:
        expected = torch.zeros(BATCHES)
        for update in self.updates:
            sizes = {lease.batch: self.coordinator.ledger.size(lease.batch) for lease in update.leases}
            for batch, size in sizes.items():
                expected[batch] += size / sum(sizes.values())
        torch.testing.assert_close(self.store.snapshot().parameters, expected)
        assert self.store.version == len(self.updates)

    def teardown(self) -> None:
        if not hasattr(self, "coordinator"):
            return
        self.follow(self.coordinator.stop_waiting())
        if not self.computing and not self.coordinator.over:
            self.ask("the last one")
        while self.computing:
            worker, lease = self.computing.popitem()
            assert self.deliver(lease) is Receipt.ACCEPTED
            self.ask(worker)
        assert self.coordinator.over
        assert not self.waiting
        self.nothing_twice()
        self.never_too_stale()
        proof = self.coordinator.ledger.proof()
        assert (proof.applied, proof.unfinished, proof.lost) == (BATCHES, 0, 0)
        assert proof.leased == BATCHES + proof.reissued


TestCoordinator = CoordinatorMachine.TestCase
TestCoordinator.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("mode", ["sync", "async", "ssp"])
def test_a_stopped_run_applies_what_was_being_computed_and_grants_nothing_more(mode: str) -> None:
    machine = CoordinatorMachine()
    machine.start(mode, 1, 2)
    machine.join()
    machine.join()
    machine.follow(machine.coordinator.stop())
    held = list(machine.computing)
    assert len(held) == 2
    for worker in held:
        machine.deliver(machine.computing.pop(worker))
        machine.ask(worker)
    assert not machine.computing
    assert not machine.waiting
    assert machine.coordinator.ledger.proof().applied == 2


def test_the_rate_of_each_update_follows_the_progress_of_the_run() -> None:
    machine = CoordinatorMachine()
    machine.start("async", 0, 1, kind="cosine")
    machine.join()
    while machine.computing:
        worker, lease = machine.computing.popitem()
        machine.deliver(lease)
        machine.ask(worker)
    rates = [update.learning_rate for update in machine.updates]
    done = [batch / BATCHES_PER_EPOCH for batch in range(BATCHES)]
    assert rates == [pytest.approx(0.5 * (1 + math.cos(math.pi * epochs / EPOCHS))) for epochs in done]


@pytest.mark.parametrize(("mode", "share"), [("async", 0.5), ("sync", 1.0)])
def test_running_statistics_move_by_the_share_of_workers_in_an_update(mode: str, share: float) -> None:
    machine = CoordinatorMachine()
    machine.start(mode, 0, 2)
    machine.join()
    machine.join()
    leases = sorted(machine.computing.values())
    for lease in leases:
        machine.deliver(lease)
        if mode == "async":
            break
    pushed = [float(lease.batch) + 1 for lease in leases[: 1 if mode == "async" else 2]]
    expected = share * sum(pushed) / len(pushed)
    assert machine.store.snapshot().statistics.item() == pytest.approx(expected)
