"""Random joins, pushes, lost replies, NaNs and deaths, of workers and of servers, with every policy.

No batch is lost, applied twice or too stale, and no worker waits for ever.

The gradients are real vectors that lie in slots until two servers, of which the second may lag, have applied them. A
slot that is leased again is filled with NaN, so a gradient overwritten before it is applied shows in the parameters.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from psys.ps.compensation import CompensationConfig
from psys.ps.coordinator import Coordinator, Decision, Wait
from psys.ps.ledger import Ledger, LedgerState, Receipt
from psys.ps.messages import Lease, Update
from psys.ps.optimizer import OptimizerConfig
from psys.ps.policy import Mode, make_policy, rounds_ahead
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import Contribution, ParameterStore, SliceState

BATCHES_PER_EPOCH, EPOCHS, SERVERS = 5, 3, 2
BATCHES = BATCHES_PER_EPOCH * EPOCHS
SLICES = [slice(server * BATCHES, (server + 1) * BATCHES) for server in range(SERVERS)]


@dataclass
class Worker:
    """What a worker knows. It may have been `forgotten`: taken for dead by the coordinator without knowing it."""

    name: str
    held: list[Lease] = field(default_factory=list)
    asking: bool = False
    answer: Lease | None = None  # the last lease it received
    late: bool = False  # the gradient that it handed in last was
    forgotten: bool = False


class Checkpoint(NamedTuple):
    """What survives the servers."""

    version: int
    ledger: str  # JSON
    stores: list[SliceState]


class CoordinatorMachine(RuleBasedStateMachine):
    """SGD at rate 1: the gradient of batch b is -1 at b in either server's slice, so parameter b counts b's uses."""

    lapsed = Bundle("lapsed")  # leases whose worker died or that were pushed already, for late or repeated pushes

    @initialize(
        mode=st.sampled_from(["sync", "async", "ssp"]),
        staleness=st.integers(0, 3),
        prefetch=st.integers(0, 1),
        awaited=st.integers(0, 3),
        backup_workers=st.integers(0, 3),
        max_staleness=st.none() | st.integers(0, 3),
        sync_epochs=st.sampled_from([0.0, 0.3, 1.0, 2.5, 4.0]),
        power=st.sampled_from([0.0, 1.0]),
    )
    def start(
        self,
        mode: Mode,
        staleness: int,
        prefetch: int,
        awaited: int,
        backup_workers: int = 0,
        max_staleness: int | None = None,
        sync_epochs: float = 0.0,
        kind: Literal["constant", "cosine"] = "constant",
        power: float = 0.0,
    ) -> None:
        self.compensation = CompensationConfig(staleness_power=power)
        self.slots = 1 + rounds_ahead(mode, staleness, prefetch)
        self.prefetch, self.expected = prefetch, awaited
        self.mode, self.staleness, self.kind = mode, staleness, kind
        self.backup_workers = backup_workers if mode == "sync" else 0
        self.max_staleness = max_staleness if mode == "async" else None
        self.sync_epochs = sync_epochs if mode != "sync" else 0.0
        self.updates: list[Update] = []
        self.born = 0
        self.start_servers()
        self.write_a_checkpoint()

    def start_servers(self, checkpoint: Checkpoint | None = None) -> None:
        """New servers, which no worker has joined yet."""
        ledger = Ledger(EPOCHS, samples=BATCHES_PER_EPOCH * 4 - 1, batch_size=4)
        plain = OptimizerConfig(momentum=0, nesterov=False)
        self.stores = [ParameterStore(torch.zeros(BATCHES), BATCHES, torch.zeros(1), plain) for _ in SLICES]
        if checkpoint:
            ledger.restore(LedgerState.model_validate_json(checkpoint.ledger))
            for store, state in zip(self.stores, checkpoint.stores, strict=True):
                store.restore(state)
        version = checkpoint.version if checkpoint else 0
        self.coordinator = Coordinator(
            ledger,
            make_policy(
                *(self.mode, self.staleness, self.prefetch),
                *(self.backup_workers, self.max_staleness, self.sync_epochs),
            ),
            plain,
            ScheduleConfig(kind=self.kind, learning_rate=1.0),
            EPOCHS,
            self.expected,
            self.slots,
            version,
            self.compensation,
        )
        self.awaited, self.begun = self.expected, False
        self.workers: dict[str, Worker] = {}
        self.slots_of: dict[tuple[str, int], Tensor] = defaultdict(lambda: torch.zeros(SERVERS * BATCHES))
        del self.updates[version:]
        self.valid: set[Lease] = set()  # granted, and neither pushed nor taken back
        self.late: dict[tuple[str, int], Lease] = {}  # given up, by worker and slot
        self.unapplied: set[Lease] = set()  # accepted and not applied yet
        self.accepted = {lease.batch for update in self.updates for lease in update.leases}

    def push_pull(self, worker: Worker, pushed: Lease | None = None, finite: bool = True) -> None:
        """The call of a worker, which then waits for an answer."""
        worker.asking, worker.forgotten = True, False
        expected = None
        if pushed is not None:
            expected = Receipt.DUPLICATE if pushed.batch in self.accepted else Receipt.EXPIRED
            if self.late.get((pushed.worker, pushed.slot)) == pushed:
                expected = Receipt.LATE
            elif pushed in self.valid:
                assert pushed.batch not in self.accepted
                expected = Receipt.ACCEPTED if finite else Receipt.DAMAGED
                if finite and self.is_too_late(pushed):
                    expected = Receipt.LATE
                else:
                    self.valid.remove(pushed)
                if expected is Receipt.ACCEPTED:
                    self.accepted.add(pushed.batch)
                    self.unapplied.add(pushed)
        lost = [lease for lease in self.valid if lease.worker == worker.name and lease not in (*worker.held, pushed)]
        self.valid.difference_update(lost)
        decision = self.coordinator.push_pull(worker.name, pushed, finite, tuple(worker.held))
        assert decision.receipt is expected
        assert sorted(decision.returned) == sorted(lost)
        assert pushed not in self.valid or decision.late == [pushed]
        worker.late = expected is Receipt.LATE
        self.follow(decision)

    def is_too_late(self, lease: Lease) -> bool:
        synchronous = self.coordinator.ledger.epochs_done < self.sync_epochs
        bound = None if synchronous else self.max_staleness
        return bound is not None and self.coordinator.version - lease.version > bound

    def follow(self, decision: Decision) -> None:
        self.updates += decision.updates
        assert len(decision.late) <= max(1, self.backup_workers) * max(1, len(decision.updates))
        assert not decision.late or self.backup_workers or self.max_staleness is not None
        for given_up in decision.late:
            self.valid.remove(given_up)
            self.late[given_up.worker, given_up.slot] = given_up
        self.unapplied.difference_update(lease for update in decision.updates for lease in update.leases)
        self.let_servers_follow(0)
        if any(grant.lease for grant in decision.grants.values()):  # an answer with parameters waits for all servers
            self.let_servers_follow(1)
            self.begun = True
        for name, grant in decision.grants.items():
            worker = self.workers[name]
            assert worker.asking
            assert grant.late == worker.late
            worker.asking, worker.answer = False, (lease := grant.lease)
            if lease is not None:
                assert lease.worker == name
                taken = {other.slot for other in self.valid | self.unapplied if other.worker == name}
                taken |= {other.slot for other in worker.held}  # leases taken back included
                assert lease.slot in set(range(self.slots)) - taken
                self.slots_of[name, lease.slot].fill_(math.nan)
                self.valid.add(lease)
                worker.held.append(lease)
        for name in decision.grants:
            if name in self.workers and not self.workers[name].held and not self.workers[name].asking:
                del self.workers[name]  # the run is over for this worker
                self.follow(self.coordinator.leave(name))

    def let_servers_follow(self, server: int) -> None:
        store = self.stores[server]
        for update in self.updates[store.version :]:
            # As on a server: the gradients themselves, which `update` may overwrite.
            gradients = [self.slots_of[lease.worker, lease.slot][SLICES[server]] for lease in update.leases]
            statistics = [torch.full((1,), float(lease.batch + 1)) for lease in update.leases]
            contributions = list(map(Contribution, gradients, statistics, update.shares, update.damping))
            store.update(contributions, update.learning_rate, update.statistics_share)

    def act(self, worker: Worker) -> Lease | None:
        """The next call of a worker that has its answer; returns the lease if it pushed one."""
        if self.prefetch and len(worker.held) == 1 and worker.answer is not None:
            self.push_pull(worker)
            return None
        lease = worker.held.pop(0)
        gradient = self.slots_of[worker.name, lease.slot].zero_()
        for part in SLICES:
            gradient[part][lease.batch] = -1
        self.push_pull(worker, lease)
        return lease

    def workers_with(self, **state: bool) -> list[Worker]:
        return [w for w in self.workers.values() if all(getattr(w, key) == value for key, value in state.items())]

    @rule()
    def join(self) -> None:
        self.born += 1
        worker = self.workers[f"worker{self.born}"] = Worker(f"worker{self.born}")
        self.push_pull(worker)

    @precondition(lambda self: self.workers_with(asking=False))
    @rule(target=lapsed, pick=st.randoms(use_true_random=False))
    def work(self, pick: Random) -> Lease | None:
        return self.act(pick.choice(self.workers_with(asking=False)))

    @rule(lease=lapsed, finite=st.booleans())
    def push_again(self, lease: Lease | None, finite: bool) -> None:
        """A worker that waits repeats a call, which may be an old one."""
        if lease is not None and (worker := self.workers.get(lease.worker)) and worker.asking:
            self.push_pull(worker, lease, finite)

    @precondition(lambda self: self.workers_with(asking=False))
    @rule(target=lapsed, pick=st.randoms(use_true_random=False))
    def compute_a_nan(self, pick: Random) -> Lease:
        worker = pick.choice(self.workers_with(asking=False))
        lease = worker.held.pop(0)  # its slot has been full of NaN since it was granted
        self.push_pull(worker, lease, finite=False)
        return lease

    @precondition(lambda self: self.workers_with(asking=False))
    @rule(pick=st.randoms(use_true_random=False))
    def call_again_because_the_answer_was_lost(self, pick: Random) -> None:
        worker = pick.choice(self.workers_with(asking=False))
        if worker.answer is not None:
            worker.held.pop()
        self.push_pull(worker)

    @precondition(lambda self: self.workers_with(asking=True, forgotten=False))
    @rule(pick=st.randoms(use_true_random=False))
    def call_again_while_waiting(self, pick: Random) -> None:
        self.push_pull(pick.choice(self.workers_with(asking=True, forgotten=False)))

    @precondition(lambda self: self.workers_with())
    @rule(target=lapsed, pick=st.randoms(use_true_random=False))
    def die(self, pick: Random) -> Lease | None:
        worker = pick.choice(self.workers_with())
        del self.workers[worker.name]
        self.take_for_dead(worker)
        return worker.held[-1] if worker.held else None

    @precondition(lambda self: self.workers_with(forgotten=False))
    @rule(pick=st.randoms(use_true_random=False))
    def fall_silent(self, pick: Random) -> None:
        self.take_for_dead(pick.choice(self.workers_with(forgotten=False)))

    def take_for_dead(self, worker: Worker) -> None:
        worker.forgotten = True
        self.valid.difference_update([lease for lease in self.valid if lease.worker == worker.name])
        self.follow(self.coordinator.leave(worker.name))

    @precondition(lambda self: self.workers_with(asking=True, forgotten=True))
    @rule(pick=st.randoms(use_true_random=False))
    def be_heard_again(self, pick: Random) -> None:
        """Taken for dead while it waited for an answer: the controller asks in its place."""
        self.push_pull(pick.choice(self.workers_with(asking=True, forgotten=True)))

    @rule()
    def stop_waiting_for_latecomers(self) -> None:
        self.awaited = 0
        self.follow(self.coordinator.stop_waiting())

    @rule()
    def write_a_checkpoint(self) -> None:
        self.let_servers_follow(1)  # its state is read after the last step
        ledger = self.coordinator.ledger.state().model_dump_json()
        self.checkpoint = Checkpoint(self.coordinator.version, ledger, [store.state() for store in self.stores])

    @rule()
    def lose_the_servers_and_resume(self) -> None:
        """All workers join again under new names, holding nothing."""
        workers = len(self.workers)
        self.start_servers(self.checkpoint)
        for _ in range(workers):
            self.join()

    @invariant()
    def no_batch_is_lost_or_applied_twice(self) -> None:
        applied = [lease.batch for update in self.updates for lease in update.leases]
        assert len(applied) == len(set(applied))
        account = self.coordinator.ledger.account()
        assert (account.applied, account.lost) == (len(applied), 0)

    @invariant()
    def staleness_is_bounded(self) -> None:
        bound = BATCHES if self.mode == "async" else rounds_ahead(self.mode, self.staleness, self.prefetch)
        if self.max_staleness is not None and not (self.sync_epochs and self.prefetch):
            bound = self.max_staleness  # with prefetch, gradients may have been accepted before the switch
        done = 0.0
        for update in self.updates:
            limit = self.prefetch if done < self.sync_epochs else bound
            assert all(0 <= staleness <= limit for staleness in update.staleness)
            done = update.epochs_done

    @invariant()
    def no_waiting_worker_could_be_answered(self) -> None:
        """By brute force over all requests; the coordinator looks only at those that an event concerns."""
        for name, request in self.coordinator._requests.items():
            assert isinstance(self.coordinator._check(name, request.held_slots), Wait)

    @invariant()
    def some_worker_computes(self) -> None:
        members = [worker for worker in self.workers.values() if not worker.forgotten]
        if members and (self.begun or len(members) >= self.awaited) and not self.coordinator.over:
            assert not all(worker.asking for worker in members)

    @invariant()
    def parameters_have_every_update(self) -> None:
        assert self.stores[0].version == len(self.updates)
        for store in self.stores:
            expected = torch.zeros(BATCHES)
            for update in self.updates[: store.version]:
                sizes = {lease.batch: self.coordinator.ledger.size(lease.batch) for lease in update.leases}
                for (batch, size), staleness in zip(sizes.items(), update.staleness, strict=True):
                    expected[batch] += self.compensation.damping(staleness, 0) * size / sum(sizes.values())
            torch.testing.assert_close(store.snapshot().parameters, expected)

    def teardown(self) -> None:
        if not hasattr(self, "coordinator"):
            return
        self.follow(self.coordinator.stop_waiting())
        self.work_to_the_end()
        if not self.coordinator.over:
            self.join()
            self.work_to_the_end()
        assert self.coordinator.over
        assert not self.workers
        self.let_servers_follow(1)
        self.no_batch_is_lost_or_applied_twice()
        self.staleness_is_bounded()
        self.parameters_have_every_update()
        assert self.stores[1].version == len(self.updates)
        account = self.coordinator.ledger.account()
        assert (account.applied, account.unfinished, account.lost) == (BATCHES, 0, 0)
        assert account.leased == BATCHES + account.reissued

    def work_to_the_end(self) -> None:
        for worker in list(self.workers.values()):
            if worker.asking and worker.forgotten:
                self.push_pull(worker)
        while able := [worker for worker in self.workers.values() if not worker.asking]:
            self.act(able[0])


TestCoordinator = CoordinatorMachine.TestCase
TestCoordinator.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("mode", ["sync", "async", "ssp"])
def test_stopped_run_applies_what_was_being_computed_and_grants_no_lease(mode: Mode, prefetch: int) -> None:
    machine = CoordinatorMachine()
    machine.start(mode, 1, prefetch, 2)
    machine.join()
    machine.join()
    held = [lease for worker in machine.workers.values() for lease in worker.held]
    assert len(held) == 2
    machine.follow(machine.coordinator.stop())
    machine.work_to_the_end()
    assert not machine.workers
    assert sorted(lease for update in machine.updates for lease in update.leases) == sorted(held)


def test_learning_rate_follows_the_progress_of_the_run() -> None:
    machine = CoordinatorMachine()
    machine.start("async", 0, 0, 1, kind="cosine")
    machine.join()
    machine.work_to_the_end()
    rates = [update.learning_rate for update in machine.updates]
    done = [batch / BATCHES_PER_EPOCH for batch in range(BATCHES)]
    assert rates == [pytest.approx(0.5 * (1 + math.cos(math.pi * epochs / EPOCHS))) for epochs in done]


@pytest.mark.parametrize("mode", ["sync", "ssp", "async"])
def test_rate_of_an_update_follows_the_gradients_that_it_has(mode: Mode) -> None:
    """Of 7 batches 3 workers make two updates of three gradients in rounds; the last batch is alone."""
    schedule = ScheduleConfig(kind="constant", learning_rate=0.5, scaling="linear")
    policy, plain = make_policy(mode, 0, 0), OptimizerConfig(momentum=0, nesterov=False)
    coordinator = Coordinator(Ledger(1, 7, 1), policy, plain, schedule, epochs=1, awaited=3, slots=1)
    held: dict[str, Lease | None] = dict.fromkeys(("worker0", "worker1", "worker2"))
    rates: list[float] = []
    for _ in range(4):
        for name, lease in list(held.items()):
            decision = coordinator.push_pull(name, lease)
            rates += [update.learning_rate for update in decision.updates]
            held |= {worker: grant.lease for worker, grant in decision.grants.items()}
    assert rates == ([0.5] * 7 if mode == "async" else [1.5, 1.5, 0.5])


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("mode", "prefetch"), [("sync", 0), ("sync", 1), ("async", 0), ("async", 1), ("ssp", 1)])
def test_look_ahead_equals_the_staleness_of_equally_fast_workers(mode: Mode, prefetch: int, workers: int) -> None:
    """The gradient under way is looked ahead by if, and only if, it will be an update of its own."""
    rate, batches = 0.5, 60 * workers
    optimizer = OptimizerConfig(momentum=0.9)
    ahead = prefetch + (2 if mode == "ssp" else 0)
    coordinator = Coordinator(
        Ledger(1, batches, 1),
        make_policy(mode, 2, prefetch),
        optimizer,
        ScheduleConfig(kind="constant", learning_rate=rate),
        epochs=1,
        awaited=workers,
        slots=1 + ahead,
    )
    momentum_ahead: dict[Lease, float] = {}
    gradient_ahead: list[float] = []
    late: list[tuple[float, float]] = []  # what was looked ahead, what would have been right
    held: dict[str, list[Lease]] = {f"worker{number}": [] for number in range(workers)}

    def follow(decision: Decision) -> None:
        for update in decision.updates:
            for lease, staleness in zip(update.leases, update.staleness, strict=True):
                late.append((momentum_ahead[lease], rate * optimizer.momentum_look_ahead(staleness)))
        for name, (granted, by_momentum, by_gradient, *_) in decision.grants.items():
            if granted is not None:
                momentum_ahead[granted] = by_momentum
                held[name].append(granted)
                gradient_ahead.append(by_gradient)

    for _ in range(1 + prefetch):
        for name in held:
            follow(coordinator.push_pull(name, None, holding=held[name]))
    for _ in range(40):
        for name, leases in held.items():
            follow(coordinator.push_pull(name, leases.pop(0), holding=leases))
    settled = late[3 * workers :]
    assert len(settled) > 30 * workers
    assert all(looked == pytest.approx(right) for looked, right in settled)
    alone = prefetch and (mode == "async" or workers == 1)
    assert set(gradient_ahead[-10:]) == {rate * optimizer.gradient_look_ahead(workers) if alone else 0.0}


@pytest.mark.parametrize(("mode", "share"), [("async", 0.5), ("sync", 1.0)])
def test_running_statistics_move_by_the_share_of_workers_in_an_update(mode: Mode, share: float) -> None:
    machine = CoordinatorMachine()
    machine.start(mode, 0, 0, 2)
    machine.join()
    machine.join()
    workers = list(machine.workers.values())[: 1 if mode == "async" else 2]
    pushed = [machine.act(worker) for worker in workers]
    expected = share * sum(lease.batch + 1.0 for lease in pushed if lease) / len(pushed)
    assert machine.stores[0].snapshot().statistics.item() == pytest.approx(expected)
