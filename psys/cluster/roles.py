"""The processes of a local run, as the supervisor starts them: server 0, other servers, workers."""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import torch
from rich.console import Console

from psys.cluster.processes import is_orphan, terminate_as_orphan
from psys.cluster.progress import ProgressView, Status
from psys.cluster.records import Stamped, lost
from psys.cluster.server import Server
from psys.cluster.shard_server import Shard
from psys.cluster.worker import leave_at_sigterm, work
from psys.compute.device import share_freed_memory
from psys.compute.flat import FlatModel
from psys.config import validate
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.errors import LostServerError, PsysError, exit_with_message
from psys.models.registry import build
from psys.ps.coordinator import Coordinator
from psys.ps.ledger import Ledger, Proof
from psys.ps.policy import make_policy
from psys.ps.store import ParameterStore
from psys.run.checkpoint import Books, part_of
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory, save_snapshot
from psys.run.events import EventLog, read_events
from psys.transport import torch_rpc
from psys.transport.registration import Reception
from psys.transport.rendezvous import GATHERING_SECONDS, Door, knock

# What a supervisor tells its server, and the exit codes of a server that ends before its last batch:
# no worker is left, another server is gone, there is something to mend.
STOP, STOP_WHEN_ALONE = signal.SIGTERM, signal.SIGUSR1
STOPPED_EARLY, LOST, USER_ERROR = 3, 4, 2
_TICK_SECONDS = 0.5


def serve(
    run: RunDirectory, listener: socket.socket, awaited: int, stopped: Callable[[Status], bool], token: str
) -> Proof:
    """Be server 0 of a run until its batches are applied or `stopped()`; `awaited` workers start together.

    Goes on from the run's newest checkpoint, if it has one. Raises PsysError for what the user must mend.
    """
    share_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # an update is divided among the cores that are idle, not each of its operations
    config = run.config()
    store = PreparedStore.open(config.store)
    training, _ = holdout(store.split("train").labels, config.validation_share, config.seed)
    shard = _shard(0, config, store)
    ledger = Ledger(config.epochs, len(training), config.batch_size)
    checkpoints = run.checkpoints(config.keep_checkpoints)
    checkpoint, refused = checkpoints.newest()
    for reason in refused:
        print(f"psys: {reason}", file=sys.stderr, flush=True)
    books = checkpoint.books if checkpoint else Books(version=0, train_seconds=0, names=0, ledger=ledger.state())
    events = EventLog(run.events)
    begun = next(read_events(run.events), None)
    others = [torch_rpc.RemoteShard(number) for number in range(1, config.servers)]

    def save(stamped: Stamped) -> None:
        assert {part.version for part in stamped.slices} == {stamped.version}
        vectors = [part.parameters for part in stamped.slices]
        parameters = torch.cat(vectors) if len(vectors) > 1 else vectors[0]
        try:
            save_snapshot(parameters, stamped.slices[0].statistics, run.snapshot_path(stamped.version))
        except OSError as error:  # the run goes on: the next one may succeed
            print(f"psys: cannot write a snapshot: {error}", file=sys.stderr, flush=True)
            events.write("snapshot_failed", version=stamped.version, reason=str(error))
            return
        events.write("snapshot", version=stamped.version, epochs=stamped.epochs, seconds=stamped.train_seconds)

    door: Door | None = None
    try:
        if begun and begun.get("store") != store.content_hash:
            raise PsysError(
                f"{config.store} is not the store that {run.path} was begun with: it was prepared anew since"
            )
        try:
            ledger.restore(books.ledger)
            if checkpoint:
                if (found := len(checkpoint.state.parameters)) != (wanted := shard.layout.slices[-1].stop):
                    raise ValueError(f"it has {found} parameters, the model {wanted}")
                shard.restore(part_of(checkpoint.state, shard.layout.slices[0], 0))
        except ValueError as error:
            raise PsysError(f"checkpoint {books.version} does not fit the run in {run.path}: {error}") from None
        checkpoints.set_back(books.version)
        run.set_back(books.version)
        events.write(
            "resume" if begun else "start",
            store=store.content_hash,
            version=books.version,
            seconds=books.train_seconds,
            batches=ledger.batches,
            counts=books.ledger.counts,
            attempts=books.ledger.attempts,
        )
        coordinator = Coordinator(
            ledger,
            make_policy(config.mode, config.staleness, config.prefetch),
            config.optimizer,
            config.schedule,
            config.epochs,
            awaited,
            shard.layout.slots,
            books.version,
        )
        address = listener.getsockname()[0]
        reception = Reception(config, store.content_hash, address, books.names)
        server = Server(
            config,
            reception,
            coordinator,
            [shard, *others],
            events,
            save,
            checkpoints,
            books.train_seconds,
            run.saved(),
        )
        door = Door(listener, token, server)
        own = torch_rpc.serve(0, address, reception.others(), server)
        torch_rpc.offer(shard)
        if checkpoint:
            try:
                for other, part in zip(others, shard.layout.slices[1:], strict=True):
                    other.restore(part_of(checkpoint.state, part, other.number))
            except RuntimeError as error:
                raise lost(error) from None
        del checkpoint
        reception.ready(0, own)
        with ProgressView(Console(stderr=True)) as view:
            return server.run(stopped, view.show)
    finally:
        for other in others:
            other.finish()
        if door:
            door.close()
        torch_rpc.close()
        events.close()
        torch.set_num_threads(threads)


def serve_shard(number: int, host: str, port: int, token: str, stopped: Callable[[], bool] = lambda: False) -> None:
    """Be server `number` > 0 of the run that server 0 conducts at host:port, until it says so or `stopped()`."""
    share_freed_memory()
    torch.set_num_threads(1)
    lifeline = knock(host, port, token, "server", GATHERING_SECONDS, number)
    where = f"settings of the server at {host}:{port}"
    config = validate(RunConfig, json.loads(lifeline.admission.settings), where)
    shard = _shard(number, config, PreparedStore.open(config.store))
    torch_rpc.offer(shard)
    # On the host of server 0 it is reached over loopback, and must be open to others as that is.
    own = lifeline.admission.listen if ip_address(lifeline.address).is_loopback else lifeline.address
    lifeline.say(ready=torch_rpc.serve(number, own))
    lifeline.listen()
    try:
        while not shard.finished.wait(_TICK_SECONDS) and not stopped():
            if lifeline.lost.is_set():
                raise LostServerError(f"server {number} lost server 0 at {host}:{port}")
    finally:
        lifeline.close()
        torch_rpc.close()


def _shard(number: int, config: RunConfig, store: PreparedStore) -> Shard:
    """Server `number`'s slice at the start of the run."""
    torch.manual_seed(config.seed)
    model = FlatModel(build(config.model, len(store.classes)))
    layout = config.layout(len(model.parameters), len(model.statistics))
    part = layout.slices[number]
    decayed = min(max(model.decayed - part.start, 0), part.stop - part.start)
    statistics = model.statistics if number == 0 else model.statistics[:0]
    parameters = ParameterStore(model.parameters[part], decayed, statistics, config.optimizer)
    return Shard(number, parameters, layout, config.wire, config.topk_share)


def serve_as_child(run: RunDirectory, listener: socket.socket, workers: int, token: str) -> None:
    """Be server 0 of a supervisor's run; what the exit code says stands above."""
    asked: list[int] = []
    for number in (STOP, STOP_WHEN_ALONE):
        signal.signal(number, lambda number, frame: asked.append(number))

    def stopped(status: Status) -> bool:
        # Without its supervisor nobody would end this process: it saves and goes.
        return is_orphan() or STOP in asked or (STOP_WHEN_ALONE in asked and status.workers == 0)

    with _exit_codes():
        proof = serve(run, listener, workers, stopped, token)
        sys.exit(STOPPED_EARLY if proof.unfinished else 0)


def serve_shard_as_child(number: int, host: str, port: int, token: str) -> None:
    """Be another server of a supervisor's run."""
    with _exit_codes():
        serve_shard(number, host, port, token, stopped=is_orphan)


def work_as_child(place: int, host: str, port: int, threads: int, token: str) -> None:
    """Be the worker in that place of a supervisor's run."""
    os.environ["LOCAL_RANK"] = str(place)
    leave_at_sigterm()
    terminate_as_orphan()
    with _exit_codes():
        work(host, port, threads, token)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    with exit_with_message():
        try:
            yield
        except LostServerError as error:
            print(f"psys: {error}", file=sys.stderr)
            sys.exit(LOST)
