"""The server driven by direct calls, without a wire: repeated pushes, futures, snapshots."""

from pathlib import Path

import pytest
import torch

from psys.cluster.config import RunConfig
from psys.cluster.server import Server, Stamped
from psys.cluster.transport import Push, Work
from psys.events import EventLog, read_events
from psys.ps.coordinator import Coordinator
from psys.ps.ledger import Ledger
from psys.ps.policy import Mode, make_policy
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import OptimizerConfig, ParameterStore

EPOCHS, BATCHES_PER_EPOCH = 2, 4


class Rig:
    """A server of two workers over eight batches; `ask` and `push` are what the wire would deliver."""

    def __init__(self, folder: Path, mode: Mode) -> None:
        config = RunConfig(mode=mode, epochs=EPOCHS)
        store = ParameterStore(torch.zeros(4), 4, torch.zeros(2), OptimizerConfig())
        self.coordinator = Coordinator(
            Ledger(EPOCHS, BATCHES_PER_EPOCH * 10, 10), make_policy(mode, 0), store, ScheduleConfig(), EPOCHS, awaited=2
        )
        self.path = folder / "events.jsonl"
        self.saved: list[Stamped] = []
        self.log = EventLog(self.path)
        self.server = Server(config, "hash", self.coordinator, self.log, self.saved.append)

    def ask(self, worker: int) -> "torch.futures.Future[Work]":
        return self.server.push_pull(worker, None)

    def push(self, worker: int, work: Work) -> "torch.futures.Future[Work]":
        assert work.lease
        gradient = torch.full((4,), float(work.lease.batch))
        return self.server.push_pull(worker, Push(work.lease, gradient, torch.zeros(2), 1.5, 3, 10))

    def events(self, kind: str) -> list[dict]:
        return [event for event in read_events(self.path) if event["event"] == kind]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_repeated_push_is_answered_and_not_applied_twice(tmp_path: Path, mode: Mode) -> None:
    rig = Rig(tmp_path, mode)
    first, second = rig.ask(0), rig.ask(1)
    rig.push(0, first.wait())
    again = rig.push(0, first.wait())  # as after a lost answer; in sync its round is still open
    rig.push(1, second.wait())
    assert again.wait().lease is not None
    applied = [batch for update in rig.events("update") for batch in update["batches"]]
    assert sorted(applied) == [0, 1]
    assert [event["receipt"] for event in rig.events("refused")] == ["duplicate"]


def test_nobody_starts_before_all_have_come(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "async")
    first = rig.ask(0)
    assert not first.done()
    second = rig.ask(1)
    assert first.wait().lease
    assert second.wait().lease


def test_a_run_is_driven_to_its_end_with_a_snapshot_an_epoch(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    answers = {worker: rig.ask(worker) for worker in (0, 1)}
    while all(answer.wait().lease for answer in answers.values()):
        answers = {worker: rig.push(worker, answer.wait()) for worker, answer in answers.items()}
    for worker in answers:
        rig.server.leave(worker)
    proof = rig.server.run(stopped=lambda status: False, tick=lambda status: None)
    assert (proof.applied, proof.lost, proof.duplicates) == (EPOCHS * BATCHES_PER_EPOCH, 0, 0)
    assert [(stamped.epochs, stamped.snapshot.version) for stamped in rig.saved] == [(1.0, 2), (2.0, 4)]
    assert rig.saved[0].snapshot.parameters is not rig.saved[1].snapshot.parameters
    assert not torch.equal(rig.saved[0].snapshot.parameters, rig.saved[1].snapshot.parameters)
    update = rig.events("update")[0]
    assert (update["batches"], update["images"], update["staleness"]) == ([0, 1], 20, [0, 0])
    assert (update["loss"], update["accuracy"]) == (1.5, 0.3)


def test_a_worker_that_left_while_others_wait_lets_them_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    first, second = rig.ask(0), rig.ask(1)
    waiting = rig.push(0, first.wait())
    assert not waiting.done()
    rig.server.leave(1)
    following = waiting.wait()
    assert following.lease is not None
    assert following.lease.batch == second.wait().lease.batch  # the one that was taken back
    assert following.snapshot.version == 1


def test_a_worker_that_asks_again_gives_up_the_lease_it_never_heard_of(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    rig.ask(0)
    lost = rig.ask(1)
    again = rig.ask(1)
    answers = {0: rig.push(0, rig.ask(0).wait()), 1: again}
    assert lost.wait().lease is not None
    while answers[1].wait().lease is not None:
        answers[1] = rig.push(1, answers[1].wait())
        if answers[0].done() and answers[0].wait().lease is not None:
            answers[0] = rig.push(0, answers[0].wait())
    assert rig.coordinator.ledger.finished


def test_a_failure_to_write_the_books_ends_the_run_and_hangs_nobody(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "sync")
    rig.ask(0)
    rig.log.close()
    with pytest.raises(ValueError, match="closed file"):
        rig.ask(1)
    with pytest.raises(ValueError, match="closed file"):
        rig.server.run(stopped=lambda status: False, tick=lambda status: None)
