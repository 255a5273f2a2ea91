"""What one process of a run is: server 0, or another server. (A worker is psys.cluster.worker.)"""

import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import torch
from rich.console import Console

from psys.cluster.evaluation import SnapshotEvaluation
from psys.cluster.progress import ProgressView
from psys.cluster.saving import Saver
from psys.cluster.server import Server
from psys.cluster.shard_server import ShardServer
from psys.cluster.worker import LeaveRequested
from psys.compute.device import share_freed_memory
from psys.compute.flat import FlatModel
from psys.data.store import PreparedStore
from psys.errors import LostServerError, PsysError, allow_many_open_files, say
from psys.ps.effects import RunEnd
from psys.ps.events import RunEnded, RunStarted
from psys.ps.ledger import Ledger
from psys.ps.store import refitted
from psys.run.assembly import initial_ledger, initial_model, initial_model_for, initial_slice, layout_of, run_controller
from psys.run.checkpoint import Checkpoint, state_of_slice
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.events import EventLog, best_evaluation, read_events, surviving
from psys.run.network import ImageFormat, with_model_here
from psys.run.segments import segments
from psys.run.status import Status
from psys.transport.chunks import write_state
from psys.transport.join import JOIN_SECONDS, join
from psys.transport.protocol import RunRejectedError, ServerUnavailableError, ShardControl
from psys.transport.registration import Registration
from psys.transport.rendezvous import RendezvousServer
from psys.transport.torch_rpc import TorchRpcServer

_POLL_SECONDS = 0.5
# For which a server that is told to leave serves on: a run that stops waits one for its workers, and saves then.
_LEAVE_TIMEOUTS = 2


def serve(
    run: RunDirectory, listener: socket.socket, awaited: int, stopped: Callable[[Status], bool], token: str
) -> RunEnd:
    """Be server 0 of a run until its batches are applied or `stopped()`; `awaited` workers start together.

    Continues from the run's newest checkpoint, if it has one. Raises PsysError for what the user must mend.
    """
    allow_many_open_files()
    share_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the blocks of an update are divided among idle cores, not each of its operations
    config = run.config()
    store = PreparedStore.open(config.store)
    model = initial_model_for(config, store)
    shard = _shard_server(config, model, 0)
    ledger = initial_ledger(config, store)
    with EventLog(run.events) as events:
        checkpoint = _newest_checkpoint(run, config)
        try:
            start = _start(run, store, ledger, shard, checkpoint)
            events.write(start)
            address = listener.getsockname()[0]
            named = checkpoint.metadata.workers_named if checkpoint else 0
            registration = Registration(
                config, store.content_hash, len(store.classes), store.image_size, address, named
            )
            before = surviving(read_events(run.events))
            controller = run_controller(
                config,
                ledger,
                awaited,
                start.version,
                start.seconds,
                saved=run.newest_snapshot(),
                best=best_evaluation(before),
                patience_from=max((segment.epoch for segment in segments(before)), default=0.0),
            )
            transport = TorchRpcServer(0, address)
            others: list[ShardControl] = []
            sizes = [_shard_sizes(config, model, number) for number in range(1, config.servers)]
            evaluation = SnapshotEvaluation(run, ledger.epochs_done)
            saver = Saver(run, events, shard, others, sizes, evaluation)
            status = Status(
                config.mode,
                config.epochs,
                epochs_done=ledger.epochs_done,
                train_seconds=start.seconds,
                resumed_seconds=start.seconds,
            )
            shards: list[ShardControl] = [shard]
            server = Server(controller, registration, shards, saver, evaluation, status)
            rendezvous = RendezvousServer(listener, token, server)
            complete = False
            try:
                addresses = registration.other_servers(stopped=lambda: stopped(status))
                if addresses is None:
                    end = RunEnd(ledger.account(), start.seconds, failure=None, stopped_early=False)
                    events.write(RunEnded(seconds=end.seconds, **vars(end.account)))
                    return end
                others += [transport.connect(i, other) for i, other in enumerate(addresses, 1)]
                shards += others
                own = transport.serve(shard, server)
                if checkpoint:
                    _restore(others, layout_of(config, model).slices, checkpoint)
                del checkpoint, model
                registration.server_ready(0, own)
                with ProgressView(Console(stderr=True)) as view:
                    end = server.run(stopped, view.show)
                complete = end.complete
                return end
            except LostServerError:
                others.clear()  # the run starts again, and they look for it
                raise
            finally:
                evaluation.close()
                for other in others:
                    other.finish(complete)
                rendezvous.close()
                transport.close()
        finally:
            torch.set_num_threads(threads)


def serve_shard(
    host: str,
    port: int,
    token: str,
    number: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    join_seconds: float = JOIN_SECONDS,
    model_path: str | None = None,
) -> bool:
    """Be another server of the run that server 0 coordinates at host:port, until it ends or `stopped()`.

    Returns whether the run is complete. `number`: which one; None: any of the run's remote servers. `model_path`: as in
    `work`. A server that is told to leave (LeaveRequested) serves on for a while: if the whole run was told to stop,
    server 0 saves it meanwhile. Raises LostServerError when server 0 is gone, LeaveRequested when it is told to leave
    before it serves, and PsysError when there is no run within `join_seconds` or it has no place for this server.
    """
    allow_many_open_files()
    share_freed_memory()
    torch.set_num_threads(1)
    connection = join(host, port, token, "server", join_seconds, number)
    response = connection.response
    config = with_model_here(connection.config(), model_path)
    model = initial_model(config, response.classes, ImageFormat(response.image_size))
    shard = _shard_server(config, model, response.number)
    # Over loopback this server is reached at server 0's own address, which other hosts may know.
    listen = response.listen if ip_address(connection.address).is_loopback else connection.address
    transport = TorchRpcServer(response.number, listen)
    try:
        address = transport.serve(shard)
        try:
            connection.send(ready=address)
            connection.watch()
            while not shard.finished.wait(_POLL_SECONDS) and not stopped():
                if connection.lost.is_set():
                    raise LostServerError(f"server {response.number} lost server 0 at {host}:{port}", config.patience)
        except LeaveRequested:
            seconds = _LEAVE_TIMEOUTS * config.leave_timeout
            say(f"this server leaves in {seconds:g} s, or when the run has stopped and is saved")
            leave_at = time.monotonic() + seconds
            while time.monotonic() < leave_at and not connection.lost.is_set():
                if shard.finished.wait(_POLL_SECONDS):
                    break
        return shard.run_complete
    finally:
        connection.close()
        transport.close()


def _shard_server(config: RunConfig, model: FlatModel, number: int) -> ShardServer:
    return ShardServer(initial_slice(config, model, number), layout_of(config, model))


def _shard_sizes(config: RunConfig, model: FlatModel, number: int) -> dict[str, int]:
    """Elements of each vector of another server's state, by name."""
    part = layout_of(config, model).slices[number]
    numel = part.stop - part.start
    return {"parameters": numel, "statistics": 0, **dict.fromkeys(config.state_names(), numel)}


def _newest_checkpoint(run: RunDirectory, config: RunConfig) -> Checkpoint | None:
    checkpoint, refused = run.checkpoints(config.keep_checkpoints).newest()
    for reason in refused:
        say(reason)
    return checkpoint and checkpoint._replace(state=refitted(checkpoint.state, config.state_names()))


def _start(
    run: RunDirectory, store: PreparedStore, ledger: Ledger, shard: ShardServer, checkpoint: Checkpoint | None
) -> RunStarted:
    """Bring ledger, slice and directory to the version to start from; the event that tells it.

    Raises PsysError if the store or the checkpoint does not fit the run.
    """
    config = run.config()
    begun = next(read_events(run.events), None)
    if isinstance(begun, RunStarted) and begun.store != store.content_hash:
        raise PsysError(f"{config.store} is not the store that {run.path} was started with: prepared again since")
    version, seconds = 0, 0.0
    if checkpoint:
        version, seconds = checkpoint.metadata.version, checkpoint.metadata.train_seconds
        try:
            ledger.restore(checkpoint.metadata.ledger)
            found, wanted = len(checkpoint.state.parameters), shard.layout.slices[-1].stop
            if found != wanted:
                raise ValueError(f"it has {found} parameters, the model {wanted}")
            shard.restore(state_of_slice(checkpoint.state, shard.layout.slices[0], 0))
        except ValueError as error:
            raise PsysError(f"checkpoint {version} does not fit the run in {run.path}: {error}") from None
    run.checkpoints(config.keep_checkpoints).roll_back(version)
    run.roll_back(version)
    state = ledger.state()
    return RunStarted(
        event="resume" if begun else "start",
        store=store.content_hash,
        version=version,
        seconds=seconds,
        batches=ledger.batches,
        counts=dict[str, int](state.counts.items()),
        attempts=dict(state.attempts),
    )


def _restore(others: Sequence[ShardControl], slices: Sequence[slice], checkpoint: Checkpoint) -> None:
    try:
        for number, other in enumerate(others, 1):
            write_state(other, state_of_slice(checkpoint.state, slices[number], number))
    except (ServerUnavailableError, RunRejectedError) as error:
        raise LostServerError(f"lost a server and its part of the parameters: {error}") from None
