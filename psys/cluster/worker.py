"""A worker: lease in, augmented views, gradient out, until the server has no more work."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Self

import torch

from psys.cluster.faults import inject
from psys.cluster.processes import leave_signals
from psys.compute.device import choose_device, keep_freed_memory
from psys.compute.gradient import BatchGradient
from psys.data.store import PreparedStore
from psys.errors import PsysError, say
from psys.ps.messages import Grant, Lease, Push
from psys.run.assembly import batch_gradient, local_steps
from psys.run.network import build_network, format_of, with_model_here
from psys.transport.buffered_model import BufferedModel
from psys.transport.join import JOIN_SECONDS, RendezvousConnection
from psys.transport.protocol import WorkerTransport
from psys.transport.reconnect import ReconnectingWorker, ServerRestartedError, SettingsChangedError
from psys.transport.torch_rpc import TorchRpcWorker
from psys.transport.worker_calls import Call, Calls, worker_calls


class LeaveRequested(BaseException):
    """This process was told to leave the run."""


def work(
    host: str,
    port: int,
    threads: int,
    token: str,
    store_path: Path | None = None,
    model_path: str | None = None,
    join_seconds: float = JOIN_SECONDS,
) -> bool:
    """Join the run at host:port and compute until it ends, or until this worker is told to leave it.

    Returns whether the run is complete. The batch of a worker that leaves goes to another one. A run that comes back
    with other settings is joined anew. `store_path`: where this machine has the prepared store, if neither where the
    run's settings say nor below stores/. `model_path`: where it has the run's .onnx file, if neither there nor in this
    folder. Raises PsysError when there is no server within `join_seconds` or it stays away, it wants another token, or
    the store or the file here is not the server's.
    """
    try:
        keep_freed_memory()
        torch.set_num_threads(threads)
        while True:
            try:
                return _take_part(host, port, token, store_path, model_path, join_seconds)
            except SettingsChangedError:
                say("the run came back with other settings: joining it anew")
    except LeaveRequested:
        return False


def _take_part(
    host: str, port: int, token: str, store_path: Path | None, model_path: str | None, join_seconds: float
) -> bool:
    """Be a worker of the run until it ends; returns whether it is complete."""
    run: ReconnectingWorker | None = None
    try:
        run = ReconnectingWorker(host, port, token, join_seconds)
        config, response = with_model_here(run.config, model_path), run.response
        store = PreparedStore.open(store_path or _store_here(config.store), config.image_size)
        if store.content_hash != response.store_hash:
            raise PsysError(f"the store at {store.path} is not the server's: copy that one, or name it with --store")
        device = choose_device(int(os.environ.get("LOCAL_RANK", response.number)))
        model = BufferedModel(build_network(config, len(store.classes), format_of(store)).to(device), config)
        steps = _Steps(run, model, batch_gradient(config, store, *model.models))

        def connect(connection: RendezvousConnection) -> WorkerTransport:
            response = connection.response
            # An answer may take as long as the servers wait for a silent worker; a call that takes longer has failed.
            timeout = 2 * response.heartbeat_timeout
            return TorchRpcWorker(response.number, connection.address, response.servers, timeout, model.buffer)

        run.attach(connect)
        while True:
            try:
                calls = worker_calls(model, steps, config.prefetch)
                return not _last_grant(run, calls, steps, config.prefetch).stopped
            except ServerRestartedError:  # it knows nothing of the leases held: ask anew
                continue
    finally:
        if run:
            run.close()


_leave_requests: list[int] = []  # signals received


def leave_at_signals() -> None:
    """From now on SIGTERM and SIGHUP make this process leave the run in order. Further ones change nothing."""

    def leave(number: int, frame: FrameType | None) -> None:
        _leave_requests.append(number)
        if len(_leave_requests) == 1:
            raise LeaveRequested

    _leave_requests.clear()
    for number in leave_signals():
        signal.signal(number, leave)


def _store_here(path: Path) -> Path:
    """Where this machine has the store that another machine has at `path`."""
    below_stores = Path("stores") / path.name
    return below_stores if below_stores.exists() and not path.exists() else path


class _Steps:
    """Computes batch after batch, with the faults that the plan has for this worker."""

    def __init__(self, run: ReconnectingWorker, model: BufferedModel, gradient: BatchGradient) -> None:
        self._run, self._model, self._batches = run, model, gradient.batches
        self._compute = local_steps(run.config, gradient.batches.samples, gradient)
        self._step = 0
        self._call_seconds = self._hidden_seconds = 0.0

    def expect(self, lease: Lease) -> None:
        """This lease is computed next: where images are decoded, decoding begins now, unless others come before."""
        if self._run.config.local_steps == 1:
            self._batches.expect(lease.batch)

    def called(self, seconds: float, hidden: float) -> None:
        """The worker stood still that long for the call that brought the next lease, after `hidden` seconds of it."""
        self._call_seconds, self._hidden_seconds = round(seconds, 6), hidden

    def __call__(self, lease: Lease, grant: Grant) -> Push:
        """Leave the gradient of the batch in the lease's slot."""
        model, response, began = self._model.models[lease.slot], self._run.response, time.monotonic()
        result = self._compute(lease.batch, model, grant.learning_rate)
        slowdown = response.faults.slowdown(response.number, self._step, self._run.config.seed)
        time.sleep(max(0.0, slowdown - 1) * (time.monotonic() - began))
        for fault in response.faults.at(response.number, self._step):
            self._run.announce_fault(fault.model_dump(mode="json"))
            match fault.kind:
                case "nan":
                    model.gradient.fill_(math.nan)  # as of a loss that is not finite
                    result = result._replace(gradient_norm=math.nan)
                case "drop_reply":
                    self._run.drop_reply(lease)
                case _:
                    inject(fault)
        # The server does not read a gradient that is not finite, but top-k would remember it.
        if math.isfinite(result.gradient_norm):
            self._model.send(lease.slot)
        self._step += 1
        # A call waits first and transfers then: what was hidden was waiting.
        wait_seconds = min(round(max(0.0, grant.wait_seconds - self._hidden_seconds), 6), self._call_seconds)
        return Push(lease, *result, round(time.monotonic() - began, 6), wait_seconds, self._call_seconds)


def _last_grant(run: ReconnectingWorker, calls: Calls, steps: _Steps, prefetch: int) -> Grant:
    """Make the worker's calls until a grant ends the run for it."""

    def push_pull(call: Call) -> Grant:
        grant = run.push_pull(*call)
        if prefetch and grant.lease is not None:
            steps.expect(grant.lease)
        return grant

    def call_at_once(call: Call) -> Callable[[], Grant]:
        grant = push_pull(call)
        return lambda: grant

    if prefetch:
        with _Background(push_pull) as background:
            return _drive(calls, background.start, steps.called)
    return _drive(calls, call_at_once, steps.called)


def _drive(calls: Calls, start: Callable[[Call], Callable[[], Grant]], called: Callable[[float, float], None]) -> Grant:
    """Make the worker's calls: `start` begins a call and returns the function that waits for its reply.

    Returns the reply to the last call.

    `called` is told how many seconds the worker stood still for each call, 0 for the first, which waits for the run's
    start, and how many seconds of the call it was computing.
    """
    reply: Grant | None = None
    with contextlib.suppress(StopIteration):
        while True:
            call = calls.send(reply)
            assert call is not None
            if _leave_requests:  # Python drops an exception that a signal handler raises within a finalizer
                raise LeaveRequested
            began = time.monotonic()
            wait = start(call)
            started = time.monotonic()
            assert next(calls) is None  # with prefetch, a batch is computed here
            computed, first = time.monotonic(), reply is None
            reply = wait()
            stood_still = started - began + time.monotonic() - computed
            called(0.0 if first else stood_still, computed - started)
    assert reply is not None
    return reply


class _Background:
    """Makes calls in a daemon thread. An executor's threads would be waited for when this worker leaves."""

    def __init__(self, function: Callable[[Call], Grant]) -> None:
        self._function = function
        self._calls: SimpleQueue[tuple[Future[Grant], Call] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="push_pull", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._calls.put(None)

    def start(self, call: Call) -> Callable[[], Grant]:
        future: Future[Grant] = Future()
        self._calls.put((future, call))
        return future.result

    def _run(self) -> None:
        while started := self._calls.get():
            future, call = started
            try:
                future.set_result(self._function(call))
            except BaseException as error:
                future.set_exception(error)
