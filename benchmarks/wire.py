"""Time of a push_pull, compared with a copy of the same bytes and with an empty call: `python -m benchmarks.wire`.

One or two server processes hold a vector of parameters with the default optimizer (SGD, Nesterov momentum). The
worker processes compute nothing: a worker writes a new gradient in the wire format of the run, sends it, waits for
the update and reads the parameters. In float32 on one host the model lives in the shared buffer, so only the
optimizer and one write of the parameters move the vector. Every worker measures the three operations in turns, then
push_pulls only; push_pulls/s are counted while all workers make them. `apart`: the servers cannot open the workers'
memory, as if they were on another host, and the bytes go in chunks over loopback. Results:
results/<machine>/wire.json, one part per wire format.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from select import select
from typing import Any, get_args

import psutil
import torch
from torch.distributed import rpc

from benchmarks.measure import ROOT, count, median_spread, prepared_sample, results_path, table, write
from psys.cluster.roles import serve, serve_shard
from psys.errors import PsysError, exit_with_message
from psys.models.registry import build
from psys.ps.codec import Wire
from psys.ps.messages import Push
from psys.ps.schedule import ScheduleConfig
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.transport.address import listen
from psys.transport.buffered_model import BufferedModel
from psys.transport.join import RendezvousConnection
from psys.transport.reconnect import ReconnectingWorker
from psys.transport.torch_rpc import TorchRpcWorker

SMALL, LARGE = 656_000, 25_600_000  # parameters, about: 2.6 MB and 102 MB in float32
_MODELS = {SMALL: "mlp200", LARGE: "mlp3748"}
_STORE = ROOT / "stores" / "sample"  # a run needs one; no image is read
_NEVER = 3600.0  # seconds
_BLOCK = 10  # operations of one kind in a row


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.wire", description=__doc__)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a measurement, per case and round")
    parser.add_argument("--wires", nargs="+", choices=get_args(Wire), default=get_args(Wire))
    parser.add_argument("--out", type=Path, default=results_path("wire"))
    parser.add_argument("--case", help="internal: for a child process")
    parser.add_argument("--role", help="internal: for a child process")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.role:
        _ROLES[arguments.role](json.loads(arguments.case), arguments)
        return
    prepared_sample(_STORE)
    series: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        for case in cases(arguments.wires):
            name = " ".join(f"{key}={value}" for key, value in case.items())
            series.setdefault(name, []).append({**case, **measure(case, arguments.seconds)})
    for wire in arguments.wires:
        of_wire = {name: rounds for name, rounds in series.items() if rounds[0]["wire"] == wire}
        results = {"rounds": arguments.rounds, "seconds": arguments.seconds, "series": of_wire}
        write(arguments.out, results, part=wire)
    print("\n".join(summary(series)))


def cases(wires: list[str]) -> list[dict[str, Any]]:
    """The cases: both sizes by format, servers and shared memory; in float32 also by the number of workers."""
    usual = {"servers": 1, "workers": 1, "wire": "fp32", "apart": False}
    grid = itertools.product((SMALL, LARGE), wires, (1, 2), (False, True))
    by_format = [{**usual, "numel": n, "wire": w, "servers": s, "apart": a} for n, w, s, a in grid]
    if "fp32" not in wires:
        return by_format
    by_workers = [{**usual, "numel": SMALL, "workers": workers} for workers in (2, 4, 8)]
    return [*by_format, *by_workers, {**usual, "numel": LARGE, "workers": 2}]


def measure(case: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Measure one case: median ms of a copy, an empty call and a push_pull; push_pulls/s of all workers together."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())

        def start(role: str, port: int = 0) -> "subprocess.Popen[str]":
            command = [sys.executable, "-m", "benchmarks.wire", "--role", role, "--case", json.dumps(case)]
            process = subprocess.Popen(
                [*command, "--port", str(port), "--seconds", str(seconds), "--folder", folder],
                cwd=ROOT,
                env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # without it torch RPC logs every worker that ends
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        server = start("server")
        port = _report(server, seconds)
        servers = [server, *(start("shard", port) for _ in range(1, case["servers"]))]
        workers = [start("worker", port) for _ in range(case["workers"])]
        reports = [_report(worker, seconds) for worker in workers]  # a worker keeps its buffer until it is killed
        resident = sum(psutil.Process(each.pid).memory_info().rss for each in servers) / 1e6
        server.kill()  # first: it would log the end of the other processes
    begin, end = max(each["done"][0] for each in reports), min(each["done"][-1] for each in reports)
    together = sum(begin < done <= end for each in reports for done in each["done"])
    return {
        "copy_ms": statistics.median(each["copy_ms"] for each in reports),
        "call_ms": statistics.median(each["call_ms"] for each in reports),
        "push_pull_ms": statistics.median(each["push_pull_ms"] for each in reports),
        "per_second": together / (end - begin),
        "server_mb": resident,
    }


def _report(process: "subprocess.Popen[str]", seconds: float) -> Any:
    """The next report of a process. Raises PsysError if the process ends without one or exceeds the time limit."""
    assert process.stdout
    if not select([process.stdout], [], [], 120 + 10 * seconds)[0] or not (line := process.stdout.readline()):
        raise PsysError(f"a process of the benchmark reported nothing: {process.args!r}")
    return json.loads(line)


def summary(series: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The Markdown table; ratios are taken within a round."""
    header = ["MB", "wire", "servers", "workers", "memory", "copy ms", "call ms", "push_pull ms"]
    header += ["/ copy", "/ call", "push_pulls/s", "server MB"]
    rows = []
    for rounds in series.values():
        case = rounds[0]
        rows.append(
            [
                f"{case['numel'] * 4 / 1e6:.1f}",
                *(case["wire"], case["servers"], case["workers"], "apart" if case["apart"] else "shared"),
                *(median_spread([each[key] for each in rounds], 2) for key in ("copy_ms", "call_ms", "push_pull_ms")),
                median_spread([each["push_pull_ms"] / each["copy_ms"] for each in rounds], 2),
                median_spread([each["push_pull_ms"] / each["call_ms"] for each in rounds], 2),
                median_spread([each["per_second"] for each in rounds], 0),
                median_spread([each["server_mb"] for each in rounds], 0),
            ]
        )
    return table(header, rows)


def _config(case: dict[str, Any], folder: Path) -> RunConfig:
    # In float32 the parameters that arrive are sent as the gradient: a low rate keeps the values nearly constant.
    return RunConfig(
        name="run",
        runs=folder,
        store=_STORE,
        model=_MODELS[case["numel"]],
        mode="async",
        wire=case["wire"],
        servers=case["servers"],
        workers=case["workers"],
        epochs=5_000,
        batch_size=1,
        snapshot_epochs=5_000,
        schedule=ScheduleConfig(kind="constant", learning_rate=1e-12),
        heartbeat_timeout=_NEVER,
        checkpoint_every=f"{_NEVER:.0f}s",
    )


def _serve(case: dict[str, Any], arguments: argparse.Namespace) -> None:
    run = RunDirectory.create(_config(case, arguments.folder))
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    serve(run, listener, case["workers"], lambda status: False, token="")


def _serve_shard(case: dict[str, Any], arguments: argparse.Namespace) -> None:
    serve_shard("127.0.0.1", arguments.port, "", 1)


def _work(case: dict[str, Any], arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    run = ReconnectingWorker("127.0.0.1", arguments.port, "")
    model = BufferedModel(build(run.config.model, run.response.classes), run.config)
    # In float32 the parameters that arrive replace the gradient; in the other formats the same gradient is sent again.
    model.models[0].gradient.normal_(generator=torch.Generator().manual_seed(run.response.number))
    if case["apart"]:
        model.buffer.address = model.buffer.address._replace(token=bytes(len(model.buffer.address.token)))

    def connect(connection: RendezvousConnection) -> TorchRpcWorker:
        response = connection.response
        return TorchRpcWorker(response.number, connection.address, response.servers, _NEVER, model.buffer)

    run.attach(connect)
    source, target = torch.zeros_like(model.models[0].parameters), torch.zeros_like(model.models[0].parameters)
    lease = run.push_pull(None).lease

    def push_pull() -> None:
        nonlocal lease
        assert lease is not None
        model.send(lease.slot)
        lease = run.push_pull(Push(lease, 0.0, 0, 1, 1.0)).lease
        assert lease is not None
        model.receive(lease.slot)

    operations = {
        "copy": lambda: target.copy_(source),
        "call": lambda: rpc.rpc_sync("server0", os.getpid),
        "push_pull": push_pull,
    }
    taken: dict[str, list[float]] = {name: [] for name in operations}
    end = time.perf_counter() + arguments.seconds
    while time.perf_counter() < end or len(taken["push_pull"]) < 3 * _BLOCK:
        for name, operation in operations.items():
            operation()  # the other operations have evicted the caches
            for _ in range(_BLOCK):
                model.models[0].gradient.neg_()  # as a gradient step would write it
                start = time.perf_counter()
                operation()
                taken[name].append(time.perf_counter() - start)
    # Longer than the measurements of the other workers can differ.
    done, end = [time.monotonic()], time.monotonic() + 2 * arguments.seconds
    while time.monotonic() < end:
        push_pull()
        done.append(time.monotonic())
    medians = {f"{name}_ms": statistics.median(values) * 1e3 for name, values in taken.items()}
    print(json.dumps({**medians, "done": done}), flush=True)
    sys.stdin.read()
    run.close()


_ROLES = {"server": _serve, "shard": _serve_shard, "worker": _work}

if __name__ == "__main__":
    with exit_with_message():
        main()
