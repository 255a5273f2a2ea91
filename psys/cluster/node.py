"""The processes of a local run, as the supervisor starts them: server 0, other servers, workers."""

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from psys.cluster import torch_rpc
from psys.cluster.config import RunConfig
from psys.cluster.progress import ProgressView, Status
from psys.cluster.rundir import RunDirectory, save_snapshot
from psys.cluster.server import Server, Stamped
from psys.cluster.shard import Shard
from psys.cluster.worker import work
from psys.compute.device import share_freed_memory
from psys.compute.flat import FlatModel
from psys.config import validate
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.errors import PsysError, exit_with_message
from psys.events import EventLog
from psys.models.registry import build
from psys.ps.coordinator import Coordinator
from psys.ps.ledger import Ledger, Proof
from psys.ps.policy import make_policy
from psys.ps.store import ParameterStore

# What a supervisor tells its server, and the exit code of a server that ended before its last batch.
STOP, STOP_WHEN_ALONE = signal.SIGTERM, signal.SIGUSR1
STOPPED_EARLY = 3
_TICK_SECONDS = 0.5


def serve(run: RunDirectory, listener: socket.socket, awaited: int, stopped: Callable[[Status], bool]) -> Proof:
    """Be server 0 of a run until its batches are applied or `stopped()`; `awaited` workers start together."""
    share_freed_memory()
    config = run.config()
    store = PreparedStore.open(config.store)
    training, _ = holdout(store.split("train").labels, config.validation_share, config.seed)
    shard = _shard(0, config, store)
    coordinator = Coordinator(
        Ledger(config.epochs, len(training), config.batch_size),
        make_policy(config.mode, config.staleness, config.prefetch),
        config.schedule,
        config.epochs,
        awaited,
        shard.layout.slots,
    )
    events = EventLog(run.events)
    events.write("start", store=store.content_hash)

    def save(stamped: Stamped) -> None:
        assert {part.version for part in stamped.slices} == {stamped.version}
        vectors = [part.parameters for part in stamped.slices]
        parameters = torch.cat(vectors) if len(vectors) > 1 else vectors[0]
        save_snapshot(parameters, stamped.slices[0].statistics, run.snapshot_path(stamped.version))
        events.write("snapshot", version=stamped.version, epochs=stamped.epochs, seconds=stamped.train_seconds)

    others: list[torch_rpc.RemoteShard] = []
    try:
        others = torch_rpc.open_board(listener, config.model_dump_json(), config.servers)
        server = Server(config, store.content_hash, coordinator, [shard, *others], events, save)
        torch_rpc.serve(server, shard, config.servers)
        with ProgressView(Console(stderr=True)) as view:
            return server.run(stopped, view.show)
    finally:
        for other in others:
            other.finish()
        torch_rpc.close()
        events.close()


def serve_shard(number: int, host: str, port: int, stopped: Callable[[], bool] = lambda: False) -> None:
    """Be server `number` > 0 of the run that server 0 conducts at host:port, until it says so or `stopped()`."""
    share_freed_memory()
    settings = json.loads(torch_rpc.settings_of(host, port))
    config = validate(RunConfig, settings, where=f"settings of the server at {host}:{port}")
    shard = _shard(number, config, PreparedStore.open(config.store))
    torch_rpc.serve_shard(shard, number)
    try:
        while not shard.finished.wait(_TICK_SECONDS) and not stopped():
            if not torch_rpc.board_answers():
                raise PsysError(f"server {number} lost server 0 at {host}:{port}")
    finally:
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


def _serve_as_child(arguments: argparse.Namespace) -> None:
    asked: list[int] = []
    for number in (STOP, STOP_WHEN_ALONE):
        signal.signal(number, lambda number, frame: asked.append(number))

    def stopped(status: Status) -> bool:
        # Without its supervisor nobody would end this process: it saves and goes.
        orphaned = os.getppid() != arguments.supervisor
        return orphaned or STOP in asked or (STOP_WHEN_ALONE in asked and status.workers == 0)

    proof = serve(RunDirectory(arguments.run), socket.socket(fileno=arguments.fd), arguments.workers, stopped)
    sys.exit(STOPPED_EARLY if proof.unfinished else 0)


def _serve_shard_as_child(arguments: argparse.Namespace) -> None:
    def orphaned() -> bool:
        return bool(os.getppid() != arguments.supervisor)

    serve_shard(arguments.number, arguments.host, arguments.port, stopped=orphaned)


def main() -> None:
    parser = argparse.ArgumentParser(prog="psys.cluster.node", description=__doc__)
    roles = parser.add_subparsers(required=True)
    server = roles.add_parser("serve")
    server.add_argument("run", type=Path)
    server.add_argument("--fd", type=int, required=True)
    server.add_argument("--workers", type=int, required=True)
    server.add_argument("--supervisor", type=int, required=True, help="process id of the parent")
    server.set_defaults(function=_serve_as_child)
    shard = roles.add_parser("shard")
    shard.add_argument("number", type=int)
    shard.add_argument("host")
    shard.add_argument("port", type=int)
    shard.add_argument("--supervisor", type=int, required=True, help="process id of the parent")
    shard.set_defaults(function=_serve_shard_as_child)
    worker = roles.add_parser("work")
    worker.add_argument("host")
    worker.add_argument("port", type=int)
    worker.add_argument("--threads", type=int, required=True)
    worker.set_defaults(function=lambda arguments: work(arguments.host, arguments.port, arguments.threads))
    arguments = parser.parse_args()
    with exit_with_message():
        arguments.function(arguments)


if __name__ == "__main__":
    main()
