"""Server 0 driven by direct calls, without a transport: futures, several servers, snapshots, failures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.futures import Future

from psys.cluster.evaluation import SnapshotEvaluation
from psys.cluster.saving import Saver
from psys.cluster.server import Server
from psys.cluster.shard_server import ShardServer
from psys.errors import LostServerError, PsysError
from psys.ps.controller import RunController
from psys.ps.events import (
    CheckpointSaved,
    LeasesReturned,
    PushRefused,
    RunDiverged,
    RunEnded,
    RunEvent,
    SnapshotSaved,
    UpdateApplied,
    WorkerJoined,
    WorkerLeft,
)
from psys.ps.ledger import BatchAccount, Ledger
from psys.ps.messages import Grant, Lease, Push, Step
from psys.ps.optimizer import OptimizerConfig
from psys.ps.policy import Mode
from psys.ps.schedule import ScheduleConfig
from psys.ps.slice import Slice
from psys.ps.store import ParameterStore
from psys.run.assembly import run_controller
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.events import EventLog, read_events
from psys.run.status import Status
from psys.transport.join_messages import JoinRequest
from psys.transport.protocol import RunRejectedError, ShardControl
from psys.transport.registration import Registration
from psys.transport.shared_memory import WorkerBuffer

EPOCHS, BATCHES_PER_EPOCH, NUMEL = 2, 4, 32
PLAIN = OptimizerConfig(momentum=0, nesterov=False)

EventT = TypeVar("EventT")


class SlowServer:
    """A server at the other end of a slow connection: it applies steps when `catch_up` is called."""

    def __init__(self, shard: ShardServer) -> None:
        self._shard, self.due = shard, list[tuple[Sequence[Step], Future[None]]]()

    def advance(self, steps: Sequence[Step]) -> "Future[None]":
        self.due.append((steps, Future()))
        return self.due[-1][1]

    def read_state(self, step: int, name: str, start: int, stop: int) -> "Future[Tensor]":
        return self._shard.read_state(step, name, start, stop)

    def forget_state(self, step: int) -> None:
        self._shard.forget_state(step)

    def write_state(self, version: int, name: str, start: int, values: Tensor) -> "Future[None]":
        return self._shard.write_state(version, name, start, values)

    def finish(self, complete: bool) -> None: ...

    def catch_up(self) -> None:
        due, self.due = self.due, []
        for steps, done in due:
            self._shard.advance(steps).wait()
            done.set_result(None)

    def break_down(self) -> None:
        due, self.due = self.due, []
        for _, done in due:
            done.set_exception(RuntimeError("the connection is gone"))  # type: ignore[arg-type]


class Rig:
    """Servers of two workers over eight batches; `ask` and `push` are what the transport would deliver."""

    def __init__(self, folder: Path, mode: Mode, prefetch: int = 0, servers: int = 1, slow: bool = False) -> None:
        config = RunConfig(
            name="run",
            runs=folder,
            store=folder,
            mode=mode,
            epochs=EPOCHS,
            evaluate_every=0,
            batch_size=10,
            prefetch=prefetch,
            servers=servers,
            optimizer=PLAIN,
            schedule=ScheduleConfig(kind="constant", learning_rate=1.0),
        )
        self.run_directory = RunDirectory.create(config)
        layout = config.buffer_layout(NUMEL, statistics=2)
        self.controller: RunController = run_controller(config, Ledger(EPOCHS, BATCHES_PER_EPOCH * 10, 10), awaited=2)
        self.buffers = [WorkerBuffer(layout) for _ in range(2)]
        shards = [
            ShardServer(
                Slice(
                    number,
                    ParameterStore(torch.zeros(part.stop - part.start), 0, torch.zeros(0 if number else 2), PLAIN),
                    "fp32",
                    1.0,
                ),
                layout,
            )
            for number, part in enumerate(layout.slices)
        ]
        for worker, buffer in enumerate(self.buffers):
            assert all(shard.attach(f"worker{worker}", buffer.address, layout.nbytes) for shard in shards)
        self.shards, self.slow = shards, SlowServer(shards[-1])
        controls: list[ShardControl] = [*shards[:-1], self.slow] if slow else [*shards]
        self.log = EventLog(self.run_directory.events)
        self.registration = Registration(config, "hash", 10, (32, 32), "127.0.0.1")
        sizes = [shard.state_sizes() for shard in shards[1:]]
        evaluation = SnapshotEvaluation(self.run_directory)
        saver = Saver(self.run_directory, self.log, shards[0], controls[1:], sizes, evaluation)
        self.server = Server(self.controller, self.registration, controls, saver, evaluation, Status(mode, EPOCHS))
        for number in range(servers):
            self.registration.server_ready(number, "address")
        for _ in self.buffers:
            self.server.admit(JoinRequest(proof="", role="worker"))

    def ask(self, worker: int, *holding: Lease) -> "Future[Grant]":
        return self.server.push_pull(f"worker{worker}", None, holding)

    def push(self, worker: int, lease: Lease, *holding: Lease, norm: float = 1.0) -> "Future[Grant]":
        """A gradient that is 1 at its batch in every server's slice."""
        slot = self.buffers[worker].slots[lease.slot]
        for payload in slot.gradient:
            gradient = payload.view(torch.float32)
            gradient.zero_()
            gradient[lease.batch] = 1
        slot.statistics.fill_(lease.batch)
        return self.server.push_pull(f"worker{worker}", Push(lease, 1.5, 3, 10, norm), holding)

    def parameters(self, worker: int) -> list[Tensor]:
        """Each server's part of the worker's first slot."""
        return [payload.view(torch.float32) for payload in self.buffers[worker].slots[0].parameters]

    def train(self) -> BatchAccount:
        """Let both workers push in turn until the run is over, and leave."""
        answers = {worker: self.ask(worker) for worker in (0, 1)}
        while all(answer.wait().lease for answer in answers.values()):
            answers = {worker: self.push(worker, lease_of(answer)) for worker, answer in answers.items()}
        return self.end()

    def end(self) -> BatchAccount:
        for worker in (0, 1):
            self.server.left(f"worker{worker}")
        return self.run()

    def run(self) -> BatchAccount:
        return self.server.run(stopped=lambda status: False, show=lambda status: None).account

    def events(self, kind: type[EventT]) -> list[EventT]:
        self.server._write_log()
        events: list[RunEvent] = list(read_events(self.run_directory.events))
        return [event for event in events if isinstance(event, kind)]


def lease_of(answer: "Future[Grant]") -> Lease:
    lease = answer.wait().lease
    assert lease is not None
    return lease


def test_buffer_of_a_dead_worker_is_kept_until_its_gradient_is_applied(tmp_path: Path) -> None:
    """A request without its lease closes the round that the dead worker's gradient is part of."""
    rig = Rig(tmp_path, "sync")
    first, second = rig.ask(0), rig.ask(1)
    lease = lease_of(first)
    rig.push(0, lease)
    rig.server.left("worker0")
    assert lease_of(second)
    lease_of(rig.ask(1))
    assert rig.parameters(1)[0].nonzero().flatten().tolist() == [lease.batch]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_repeated_push_is_answered_and_applied_once(tmp_path: Path, mode: Mode) -> None:
    rig = Rig(tmp_path, mode)
    first, second = rig.ask(0), rig.ask(1)
    lease = lease_of(first)
    rig.push(0, lease)
    again = rig.server.push_pull("worker0", Push(lease, 1.5, 3, 10, 1.0), ())  # as after a lost reply
    rig.push(1, lease_of(second)).wait()
    assert again.wait().lease is not None
    applied = [batch for update in rig.events(UpdateApplied) for batch in update.batches]
    assert sorted(applied) == [0, 1]
    assert [event.receipt for event in rig.events(PushRefused)] == ["duplicate"]


def test_no_worker_starts_before_all_have_joined(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    first = rig.ask(0)
    assert not first.done()
    assert lease_of(rig.ask(1))
    assert lease_of(first)


@pytest.mark.parametrize("servers", [1, 2])
def test_run_ends_with_a_snapshot_for_every_epoch_and_a_checkpoint(tmp_path: Path, servers: int) -> None:
    rig = Rig(tmp_path, "sync", servers=servers)
    account = rig.train()
    assert (account.applied, account.lost, account.duplicates) == (EPOCHS * BATCHES_PER_EPOCH, 0, 0)
    assert [(event.epochs, event.version) for event in rig.events(SnapshotSaved)] == [(1.0, 2), (2.0, 4)]
    half = NUMEL // servers
    for version, applied in ((2, 4), (4, 8)):
        snapshot = load_file(rig.run_directory.snapshot_path(version))
        expected = [-0.5] * applied + [0.0] * (half - applied)
        assert snapshot["parameters"].tolist() == expected * servers
        assert snapshot["statistics"].tolist() == [applied - 1.5] * 2
    update = rig.events(UpdateApplied)[0]
    assert (update.batches, update.images, update.staleness) == ((0, 1), 20, (0, 0))
    assert (update.loss, update.accuracy) == (1.5, 0.3)
    checkpoint, refused = rig.run_directory.checkpoints(3).newest()
    assert checkpoint is not None
    assert not refused
    assert (checkpoint.metadata.version, checkpoint.metadata.workers_named) == (4, 2)
    assert checkpoint.metadata.ledger.applied == ((0, 8),)
    assert checkpoint.state.parameters.tolist() == ([-0.5] * 8 + [0.0] * (half - 8)) * servers
    assert [event.version for event in rig.events(CheckpointSaved)] == [4]
    assert isinstance([*read_events(rig.run_directory.events)][-1], RunEnded)


@pytest.mark.parametrize("servers", [1, 2])
def test_states_that_were_saved_are_not_kept(tmp_path: Path, servers: int) -> None:
    rig = Rig(tmp_path, "sync", servers=servers)
    rig.train()
    assert len(rig.events(SnapshotSaved)) == EPOCHS
    for shard in rig.shards:
        for step in range(2 * EPOCHS * BATCHES_PER_EPOCH):
            with pytest.raises(KeyError):
                shard.kept(step)


def test_prefetching_worker_gets_the_next_lease_while_it_computes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync", prefetch=1)
    held = dict(enumerate(map(lease_of, [rig.ask(0), rig.ask(1)])))
    coming = {worker: rig.ask(worker, lease) for worker, lease in held.items()}
    last: list[Future[Grant]] = []
    while held:
        for worker, lease in list(held.items()):
            following = coming[worker].wait().lease
            if following is None:
                last.append(rig.push(worker, held.pop(worker)))
            else:
                assert following.slot != lease.slot
                held[worker], coming[worker] = following, rig.push(worker, lease, following)
    assert [answer.wait().lease for answer in last] == [None, None]
    account = rig.end()
    assert (account.applied, account.reissued, account.lost) == (EPOCHS * BATCHES_PER_EPOCH, 0, 0)
    assert [update.staleness for update in rig.events(UpdateApplied)] == [(0, 0), (1, 1), (1, 1), (1, 1)]
    assert load_file(rig.run_directory.snapshot_path(4))["parameters"][:8].tolist() == [-0.5] * 8


def test_worker_is_answered_when_every_server_has_applied_the_step(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async", servers=2, slow=True)
    first, second = rig.ask(0), rig.ask(1)
    assert not first.done()
    rig.slow.catch_up()
    assert lease_of(first).batch == 0
    assert lease_of(second).batch == 1
    following = rig.push(0, lease_of(first))
    assert not following.done()
    assert rig.events(UpdateApplied) == []
    assert rig.parameters(0)[0][0] == -1
    assert rig.parameters(0)[1][0] == 1  # the gradient still
    rig.slow.catch_up()
    assert lease_of(following).batch == 2
    assert rig.parameters(0)[1][0] == -1
    assert [event.version for event in rig.events(UpdateApplied)] == [1]


def test_decisions_go_on_while_a_server_applies_a_step(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async", servers=2, slow=True)
    first, second = rig.ask(0), rig.ask(1)
    rig.slow.catch_up()
    answers = [rig.push(0, lease_of(first)), rig.push(1, lease_of(second))]
    rig.server.heartbeat("worker0")
    assert [[step.number for step in steps] for steps, _ in rig.slow.due] == [[1], [2]]
    assert not any(answer.done() for answer in answers)
    rig.slow.catch_up()
    assert [lease_of(answer).version for answer in answers] == [1, 2]
    assert [(event.version, event.staleness) for event in rig.events(UpdateApplied)] == [(1, (0,)), (2, (1,))]


def test_lost_server_ends_the_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async", servers=2, slow=True)
    rig.ask(0)
    rig.ask(1)
    rig.slow.break_down()
    with pytest.raises(LostServerError, match=r"lost a server.*the connection is gone"):
        rig.run()


def test_disconnected_server_ends_the_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async", servers=2)
    rig.registration.other_servers(stopped=lambda: False)
    rig.server.disconnected("server1")
    with pytest.raises(LostServerError, match="lost server1"):
        rig.run()


def test_leaving_worker_lets_the_others_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    first, second = rig.ask(0), rig.ask(1)
    waiting = rig.push(0, lease_of(first))
    assert not waiting.done()
    rig.server.left("worker1")
    following = lease_of(waiting)
    assert following.batch == lease_of(second).batch  # taken back from worker1
    assert following.version == 1
    assert rig.parameters(0)[0][:2].tolist() == [-1, 0]


def test_failure_to_write_the_log_ends_the_run_and_leaves_no_worker_waiting(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    first = rig.ask(0)
    rig.log.close()
    second = lease_of(rig.ask(1))
    with pytest.raises(ValueError, match="closed file"):
        rig.run()
    rig.push(0, lease_of(first))
    rig.server.left("worker1")  # completes the round, but nothing is applied any more
    assert second.version == 0
    assert rig.parameters(0)[0].min() == 0  # the gradient still, no parameters


def test_broken_connection_gives_the_batch_to_another_worker_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    first, second = rig.ask(0), rig.ask(1)
    rig.server.disconnected("worker0")
    again = lease_of(rig.push(1, lease_of(second)))
    assert (again.batch, again.attempt) == (lease_of(first).batch, 1)
    # Only the connection was broken: the gradient comes late, and the worker takes part again.
    incarnation = rig.registration.incarnation
    rig.server.admit(JoinRequest(proof="", role="worker", number=0, incarnation=incarnation))
    assert lease_of(rig.push(0, lease_of(first))).batch == 2
    assert [event.reason for event in rig.events(WorkerLeft)] == ["disconnected"]
    assert [event.worker for event in rig.events(WorkerJoined)] == ["worker0", "worker1", "worker0"]
    assert [event.receipt for event in rig.events(PushRefused)] == ["expired"]
    assert [lease[:2] for event in rig.events(LeasesReturned) for lease in event.leases] == [(0, 0)]


def test_unknown_worker_is_rejected(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    rig.ask(0)
    with pytest.raises(RunRejectedError, match="worker7 is not in this run"):
        rig.server.push_pull("worker7", None, ())
    rig.server.left("worker0")
    with pytest.raises(RunRejectedError, match="worker0 is not in this run"):
        rig.ask(0)


def test_divergence_ends_the_run_and_saves_nothing_after_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    first, second = rig.ask(0), rig.ask(1)
    rig.push(1, lease_of(second))
    answer = first
    for attempt in range(3):
        lease = lease_of(answer)
        assert (lease.batch, lease.attempt) == (0, attempt)
        answer = rig.push(0, lease, norm=float("inf") if attempt else float("nan"))
    with pytest.raises(PsysError, match="gradient of batch 0 was not finite 3 times"):
        rig.end()
    assert [event.receipt for event in rig.events(PushRefused)] == ["damaged"] * 3
    assert [(event.version, event.batch) for event in rig.events(RunDiverged)] == [(0, 0)]
    assert rig.events(SnapshotSaved) == []
    assert rig.run_directory.checkpoints(3).newest() == (None, [])
