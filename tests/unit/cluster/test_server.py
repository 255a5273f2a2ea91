"""The server driven by direct calls, without a wire: repeated pushes, futures, several shards, snapshots."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.futures import Future

from psys.cluster.records import Stamped
from psys.cluster.server import Server
from psys.cluster.shard_server import Shard
from psys.errors import PsysError
from psys.ps.coordinator import Coordinator, Grant
from psys.ps.ledger import Lease, Ledger, Proof
from psys.ps.partition import partition
from psys.ps.policy import Mode, make_policy
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import OptimizerConfig, ParameterStore, Snapshot, StoreState
from psys.run.checkpoint import Checkpoints
from psys.run.config import RunConfig
from psys.run.events import EventLog, read_events
from psys.transport.protocol import Advance, Push, ShardControl
from psys.transport.registration import Reception
from psys.transport.rendezvous import Knock
from psys.transport.shared_memory import Lane, Layout

EPOCHS, BATCHES_PER_EPOCH, NUMEL = 2, 4, 32


class Afar:
    """A shard at the other end of a slow line: it does its part only when `catch_up` is called."""

    def __init__(self, shard: Shard) -> None:
        self._shard, self.due = shard, list[tuple[Sequence[Advance], Future[None]]]()

    def advance(self, steps: Sequence[Advance]) -> "Future[None]":
        self.due.append((steps, Future()))
        return self.due[-1][1]

    def snapshot(self) -> "Future[Snapshot]":
        raise NotImplementedError

    def state(self) -> "Future[StoreState]":
        raise NotImplementedError

    def restore(self, state: StoreState) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError

    def catch_up(self) -> None:
        due, self.due = self.due, []
        for steps, done in due:
            self._shard.advance(steps).wait()
            done.set_result(None)

    def break_down(self) -> None:
        due, self.due = self.due, []
        for _, done in due:
            done.set_exception(RuntimeError("the line is cut"))


class Rig:
    """Servers of two workers over eight batches; `ask` and `push` are what the wire would deliver."""

    def __init__(self, folder: Path, mode: Mode, prefetch: int = 0, servers: int = 1, afar: bool = False) -> None:
        config = RunConfig(mode=mode, epochs=EPOCHS, prefetch=prefetch, servers=servers)
        self.layout = Layout(partition(NUMEL, servers), 2, slots=1 + prefetch)
        plain = OptimizerConfig(momentum=0, nesterov=False)
        self.coordinator = Coordinator(
            Ledger(EPOCHS, BATCHES_PER_EPOCH * 10, 10),
            make_policy(mode, 0, prefetch),
            plain,
            ScheduleConfig(kind="constant", learning_rate=1.0),
            EPOCHS,
            awaited=2,
            slots=self.layout.slots,
        )
        self.lanes = [Lane(self.layout) for _ in range(2)]
        shards = [
            Shard(
                number,
                ParameterStore(torch.zeros(part.stop - part.start), 0, torch.zeros(0 if number else 2), plain),
                self.layout,
                "fp32",
                1.0,
            )
            for number, part in enumerate(self.layout.slices)
        ]
        for worker, lane in enumerate(self.lanes):
            assert all(shard.attach(f"worker{worker}", lane.address, self.layout.nbytes) for shard in shards)
        self.afar = Afar(shards[-1])
        controls: list[ShardControl] = [*shards[:-1], self.afar] if afar else [*shards]
        self.path = folder / "events.jsonl"
        self.saved: list[Stamped] = []
        self.log = EventLog(self.path)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=3)
        self.reception = Reception(config, "hash", "127.0.0.1")
        self.server = Server(
            config, self.reception, self.coordinator, controls, self.log, self.saved.append, self.checkpoints
        )
        for server in range(servers):
            self.reception.ready(server, "address")
        for _ in self.lanes:
            self.server.admit(Knock(proof="", role="worker"))

    def ask(self, worker: int, *holding: Lease) -> "Future[Grant]":
        return self._settled(self.server.push_pull(f"worker{worker}", None, holding))

    def push(self, worker: int, lease: Lease | None, *holding: Lease, norm: float = 1.0) -> "Future[Grant]":
        assert lease
        return self._settled(self.hand_in(worker, lease, *holding, norm=norm))

    def hand_in(self, worker: int, lease: Lease, *holding: Lease, norm: float = 1.0) -> "Future[Grant]":
        """A gradient that is 1 at its batch in every server's slice; not settled."""
        slot = self.lanes[worker].slots[lease.slot]
        for payload in slot.gradient:
            gradient = payload.view(torch.float32)
            gradient.zero_()
            gradient[lease.batch] = 1
        slot.statistics.fill_(lease.batch)
        return self.server.push_pull(f"worker{worker}", Push(lease, 1.5, 3, 10, norm), holding)

    def _settled(self, answer: "Future[Grant]") -> "Future[Grant]":
        self.server.settle()
        return answer

    def parameters(self, worker: int) -> list[Tensor]:
        """Each server's part as it stands in the worker's first slot."""
        return [payload.view(torch.float32) for payload in self.lanes[worker].slots[0].parameters]

    def run(self) -> Proof:
        return self.server.run(stopped=lambda status: False, tick=lambda status: None)

    def events(self, kind: str) -> list[dict]:
        self.server.flush()
        return [event for event in read_events(self.path) if event["event"] == kind]


def lease_of(answer: "Future[Grant]") -> Lease:
    assert answer.done()
    lease = answer.value().lease
    assert lease is not None
    return lease


def test_the_lane_of_the_dead_is_kept_until_its_gradient_is_applied(tmp_path: Path) -> None:
    """A request that disowns its lease closes the round in which the dead worker's gradient stands."""
    rig = Rig(tmp_path, "sync", afar=True)
    first, second = rig.ask(0), rig.ask(1)
    rig.afar.catch_up()
    lease = lease_of(first)
    rig.push(0, lease)
    rig.server.leave("worker0")
    assert lease_of(second)
    again = rig.ask(1)
    rig.afar.catch_up()
    assert lease_of(again)
    assert rig.parameters(1)[0].nonzero().flatten().tolist() == [lease.batch]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_repeated_push_is_answered_and_not_applied_twice(tmp_path: Path, mode: Mode) -> None:
    rig = Rig(tmp_path, mode)
    first, second = rig.ask(0), rig.ask(1)
    lease = lease_of(first)
    rig.push(0, lease)
    # As after a lost answer; in sync its round is still open.
    again = rig.server.push_pull("worker0", Push(lease, 1.5, 3, 10, 1.0), ())  # settled with the next
    rig.push(1, lease_of(second))
    assert again.wait().lease is not None
    applied = [batch for update in rig.events("update") for batch in update["batches"]]
    assert sorted(applied) == [0, 1]
    assert [event["receipt"] for event in rig.events("refused")] == ["duplicate"]


def test_what_comes_together_is_made_in_one_go_and_each_reads_its_own_version(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async", servers=2, afar=True)
    rig.ask(0), rig.ask(1)
    rig.afar.catch_up()
    leases = [Lease(0, 0, "worker0", 0, 0), Lease(1, 0, "worker1", 0, 0)]
    answers = [rig.hand_in(worker, lease) for worker, lease in enumerate(leases)]
    assert rig.afar.due == []
    assert rig.events("update") == []
    rig.server.settle()
    assert [[step.number for step in steps] for steps, _ in rig.afar.due] == [[1, 2]]
    assert not any(answer.done() for answer in answers)
    rig.afar.catch_up()
    assert [lease_of(answer).version for answer in answers] == [1, 2]
    for worker, batches in enumerate([[0], [0, 1]]):
        for part in rig.parameters(worker):
            assert part.nonzero().flatten().tolist() == batches
    assert [(event["version"], event["staleness"]) for event in rig.events("update")] == [(1, [0]), (2, [1])]


def test_of_many_that_come_together_some_are_made_at_a_time(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    rig.ask(0), rig.ask(1)
    lost = [rig.server.push_pull("worker0", None, ()) for _ in range(3)]
    assert not any(answer.done() for answer in lost)
    fourth = rig.server.push_pull("worker0", None, ())
    assert all(answer.done() for answer in [*lost, fourth])


def test_a_snapshot_that_is_due_is_of_its_version_whatever_comes_with_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    first, second = rig.ask(0), rig.ask(1)
    for _ in range(3):
        first = rig.push(0, lease_of(first))
    both = [rig.hand_in(0, lease_of(first)), rig.hand_in(1, lease_of(second))]  # of which the first ends the epoch
    assert not any(answer.done() for answer in both)
    rig.server.settle()
    assert [lease_of(answer).version for answer in both] == [4, 5]
    last = rig.push(0, lease_of(both[0]))
    rig.push(1, lease_of(both[1]))
    rig.push(0, lease_of(last))
    for worker in (0, 1):
        rig.server.leave(f"worker{worker}")
    rig.run()
    assert [(stamped.epochs, stamped.version) for stamped in rig.saved] == [(1.0, 4), (2.0, 8)]
    parts = [stamped.slices[0].parameters for stamped in rig.saved]
    assert [part.count_nonzero().item() for part in parts] == [4, 8]


def test_nobody_starts_before_all_have_come(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    first = rig.ask(0)
    assert not first.done()
    second = rig.ask(1)
    assert first.wait().lease
    assert second.wait().lease


@pytest.mark.parametrize("servers", [1, 2])
def test_a_run_is_driven_to_its_end_with_a_snapshot_an_epoch(tmp_path: Path, servers: int) -> None:
    rig = Rig(tmp_path, "sync", servers=servers)
    answers = {worker: rig.ask(worker) for worker in (0, 1)}
    while all(answer.wait().lease for answer in answers.values()):
        answers = {worker: rig.push(worker, answer.wait().lease) for worker, answer in answers.items()}
    for worker in answers:
        rig.server.leave(f"worker{worker}")
    proof = rig.run()
    assert (proof.applied, proof.lost, proof.duplicates) == (EPOCHS * BATCHES_PER_EPOCH, 0, 0)
    assert [(stamped.epochs, stamped.version) for stamped in rig.saved] == [(1.0, 2), (2.0, 4)]
    for stamped, applied in zip(rig.saved, (4, 8), strict=True):
        for snapshot in stamped.slices:
            assert snapshot.version == stamped.version
            assert snapshot.parameters[:10].tolist() == [-0.5] * applied + [0.0] * (10 - applied)
        assert stamped.slices[0].statistics.tolist() == [applied - 1.5] * 2
    update = rig.events("update")[0]
    assert (update["batches"], update["images"], update["staleness"]) == ([0, 1], 20, [0, 0])
    assert (update["loss"], update["accuracy"]) == (1.5, 0.3)


def test_a_worker_ahead_is_told_what_to_compute_next_while_it_computes(tmp_path: Path) -> None:
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
    for worker in (0, 1):
        rig.server.leave(f"worker{worker}")
    proof = rig.run()
    assert (proof.applied, proof.reissued, proof.lost) == (EPOCHS * BATCHES_PER_EPOCH, 0, 0)
    assert [update["staleness"] for update in rig.events("update")] == [[0, 0], [1, 1], [1, 1], [1, 1]]
    assert rig.saved[-1].slices[0].parameters[:8].tolist() == [-0.5] * 8


def test_a_worker_is_answered_when_every_server_has_done_its_part(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async", servers=2, afar=True)
    first, second = rig.ask(0), rig.ask(1)
    assert not first.done()
    rig.afar.catch_up()
    assert lease_of(first).batch == 0
    assert lease_of(second).batch == 1
    following = rig.push(0, lease_of(first))
    assert not following.done()
    assert rig.parameters(0)[0][0] == -1
    assert rig.parameters(0)[1][0] == 1  # the gradient still
    rig.afar.catch_up()
    assert lease_of(following).batch == 2
    assert rig.parameters(0)[1][0] == -1


def test_a_server_that_fails_ends_the_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async", servers=2, afar=True)
    rig.ask(0)
    rig.ask(1)
    rig.afar.break_down()
    with pytest.raises(PsysError, match=r"lost a server.*the line is cut"):
        rig.run()


def test_a_worker_that_left_while_others_wait_lets_them_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    first, second = rig.ask(0), rig.ask(1)
    waiting = rig.push(0, lease_of(first))
    assert not waiting.done()
    rig.server.leave("worker1")
    following = lease_of(waiting)
    assert following.batch == lease_of(second).batch  # the one that was taken back
    assert following.version == 1
    assert rig.parameters(0)[0][:2].tolist() == [-1, 0]


def test_a_worker_that_asks_again_gives_up_the_lease_it_never_heard_of(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    rig.ask(0)
    lost = rig.ask(1)
    again = rig.ask(1)
    answers = {0: rig.push(0, lease_of(rig.ask(0))), 1: again}
    assert lost.wait().lease is not None
    while answers[1].wait().lease is not None:
        answers[1] = rig.push(1, answers[1].wait().lease)
        if answers[0].done() and answers[0].wait().lease is not None:
            answers[0] = rig.push(0, answers[0].wait().lease)
    assert rig.coordinator.ledger.finished


def test_a_failure_to_write_the_log_ends_the_run_and_hangs_nobody(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    rig.ask(0)
    rig.log.close()
    assert rig.ask(1).done()
    with pytest.raises(ValueError, match="closed file"):
        rig.run()


def test_a_broken_connection_gives_the_lease_to_another_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    first, second = rig.ask(0), rig.ask(1)
    rig.server.lost("worker0")
    again = rig.push(1, lease_of(second))
    assert (lease_of(again).batch, lease_of(again).attempt) == (lease_of(first).batch, 1)
    # It was only the connection: the gradient comes late, and the worker takes part again.
    rig.server.admit(Knock(proof="", role="worker", number=0, incarnation=rig.reception.incarnation))
    assert lease_of(rig.push(0, lease_of(first))).batch == 2
    assert [event["reason"] for event in rig.events("leave")] == ["broken"]
    assert [event["worker"] for event in rig.events("join")] == ["worker0", "worker1", "worker0"]
    assert [event["receipt"] for event in rig.events("refused")] == ["expired"]
    assert [lease[:2] for event in rig.events("returned") for lease in event["leases"]] == [[0, 0]]


def test_where_one_taken_for_dead_may_still_be_computing_nothing_is_delivered(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async", prefetch=1)
    rig.ask(1)
    first = lease_of(rig.ask(0))
    second = lease_of(rig.ask(0, first))
    waiting = rig.ask(0, first, second)
    with rig.server._lock:
        rig.server._look_after(time.monotonic() + 1000, stopped=False)
    assert [event["reason"] for event in rig.events("leave")] == ["silent"] * 2
    rig.server.beat("worker0")
    assert [event["worker"] for event in rig.events("join")] == ["worker1", "worker0", "worker0"]
    assert not waiting.done()
    again = lease_of(rig.push(0, first, second))
    assert (again.slot, again.batch, again.attempt) == (first.slot, 0, 1)  # worker1 had that batch before
    assert [event["receipt"] for event in rig.events("refused")] == ["expired"]


def test_who_did_not_come_through_the_door_gets_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    rig.ask(0)
    with pytest.raises(PsysError, match="worker7 is not in this run"):
        rig.server.push_pull("worker7", None, ())
    rig.server.leave("worker0")
    with pytest.raises(PsysError, match="worker0 is not in this run"):
        rig.ask(0)


def test_a_batch_without_a_finite_gradient_is_tried_again_and_then_ends_the_run_with_all_saved(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    first, second = rig.ask(0), rig.ask(1)
    rig.push(1, lease_of(second))
    answer = first
    for attempt in range(3):
        lease = lease_of(answer)
        assert (lease.batch, lease.attempt) == (0, attempt)
        answer = rig.push(0, lease, norm=float("inf") if attempt else float("nan"))
    for worker in (0, 1):
        rig.server.leave(f"worker{worker}")
    with pytest.raises(PsysError, match="gradient of batch 0 was not finite 3 times"):
        rig.run()
    assert [event["receipt"] for event in rig.events("refused")] == ["damaged"] * 3
    assert [stamped.version for stamped in rig.saved] == [1]
    checkpoint, _ = rig.checkpoints.newest()
    assert checkpoint is not None
    assert checkpoint.books.ledger.applied == ((1, 2),)
    assert checkpoint.state.parameters[:3].tolist() == [0, -1, 0]


def test_the_checkpoint_at_the_end_has_everything(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync", servers=2)
    answers = {worker: rig.ask(worker) for worker in (0, 1)}
    while all(answer.wait().lease for answer in answers.values()):
        answers = {worker: rig.push(worker, answer.wait().lease) for worker, answer in answers.items()}
    for worker in answers:
        rig.server.leave(f"worker{worker}")
    rig.run()
    checkpoint, refused = rig.checkpoints.newest()
    assert checkpoint is not None
    assert not refused
    assert (checkpoint.books.version, checkpoint.books.names) == (4, 2)
    assert checkpoint.books.ledger.applied == ((0, 8),)
    assert checkpoint.state.parameters.tolist() == ([-0.5] * 8 + [0.0] * 8) * 2
    assert [event["version"] for event in rig.events("checkpoint")] == [4]
