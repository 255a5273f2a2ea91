"""The server process and the worker process of a local run, as the supervisor starts them."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from psys.cluster import torch_rpc
from psys.cluster.progress import ProgressView, Status
from psys.cluster.rundir import RunDirectory, save_module
from psys.cluster.server import Server, Stamped
from psys.cluster.worker import work
from psys.compute.flat import FlatModel
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.errors import exit_with_message
from psys.events import EventLog
from psys.models.registry import build
from psys.ps.coordinator import Coordinator
from psys.ps.ledger import Ledger, Proof
from psys.ps.policy import make_policy
from psys.ps.store import ParameterStore

# What a supervisor tells its server, and the exit code of a server that ended before its last batch.
STOP, STOP_WHEN_ALONE = signal.SIGTERM, signal.SIGUSR1
STOPPED_EARLY = 3


def serve(run: RunDirectory, listener: socket.socket, awaited: int, stopped: Callable[[Status], bool]) -> Proof:
    """Be the server of a run until its batches are applied or `stopped()`; `awaited` workers start together."""
    config = run.config()
    store = PreparedStore.open(config.store)
    torch.manual_seed(config.seed)
    model = FlatModel(build(config.model, len(store.classes)))
    training, _ = holdout(store.split("train").labels, config.validation_share, config.seed)
    coordinator = Coordinator(
        Ledger(config.epochs, len(training), config.batch_size),
        make_policy(config.mode, config.staleness),
        ParameterStore(model.parameters, model.decayed, model.statistics, config.optimizer),
        config.schedule,
        config.epochs,
        awaited,
    )
    events = EventLog(run.events)
    events.write("start", store=store.content_hash)

    def save(stamped: Stamped) -> None:
        snapshot = stamped.snapshot
        model.load(snapshot.parameters, snapshot.statistics)
        save_module(model.module, run.snapshot_path(snapshot.version))
        events.write("snapshot", version=snapshot.version, epochs=stamped.epochs, seconds=stamped.train_seconds)

    server = Server(config, store.content_hash, coordinator, events, save)
    torch_rpc.serve(server, listener)
    try:
        with ProgressView(Console(stderr=True)) as view:
            return server.run(stopped, view.show)
    finally:
        torch_rpc.close()
        events.close()


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="psys.cluster.node", description=__doc__)
    roles = parser.add_subparsers(required=True)
    server = roles.add_parser("serve")
    server.add_argument("run", type=Path)
    server.add_argument("--fd", type=int, required=True)
    server.add_argument("--workers", type=int, required=True)
    server.add_argument("--supervisor", type=int, required=True, help="process id of the parent")
    server.set_defaults(function=_serve_as_child)
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
