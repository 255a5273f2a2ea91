"""A worker: lease in, augmented views, gradient out, until the server has no more work."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from psys.cluster import torch_rpc
from psys.cluster.batches import Batches
from psys.cluster.config import RunConfig
from psys.cluster.laned import LanedModel
from psys.cluster.transport import Push
from psys.compute.device import choose_device, choose_precision, keep_freed_memory
from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep, StepResult
from psys.config import validate
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.models.registry import build

_BEATS_PER_TIMEOUT = 5


class BatchGradient:
    """Computes the gradient of any batch of the run, which depends on batch and parameters, not on who computes it."""

    def __init__(self, config: RunConfig, store: PreparedStore, model: FlatModel) -> None:
        device = model.parameters.device
        self._batches = Batches(config, store, device)
        self.samples = self._batches.samples
        self._step = GradientStep(model, choose_precision(config.precision, device), config.label_smoothing)

    def __call__(self, batch: int) -> StepResult:
        """Leave the batch's gradient at the model's parameters in the model's gradient, and its statistics there."""
        return self._step(*self._batches[batch])


def work(host: str, port: int, threads: int, store_path: Path | None = None) -> None:
    """Join the run at host:port and compute until it is over.

    `store_path`: where this machine has the prepared store, if not where the run's settings say.
    Raises PsysError when there is no server, or the store here is not the server's.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    client = torch_rpc.connect(host, port)
    try:
        welcome = client.hello()
        config = validate(RunConfig, json.loads(welcome.settings), where=f"settings of the server at {host}:{port}")
        store = PreparedStore.open(store_path or config.store)
        if store.content_hash != welcome.store_hash:
            raise PsysError(f"the store at {store.path} is not the server's: copy that one, or name it with --store")
        device = choose_device(int(os.environ.get("LOCAL_RANK", client.number)))
        laned = LanedModel(build(config.model, len(store.classes)).to(device), config)
        compute = BatchGradient(config, store, laned.model)
        client.attach(laned.lane)
        with _heartbeat(client, config.heartbeat_timeout / _BEATS_PER_TIMEOUT):
            (_run_ahead if config.prefetch else _run)(client, laned, compute)
    except RuntimeError as error:
        if not torch_rpc.is_connection_error(error):
            raise
        raise PsysError(f"lost the server at {host}:{port}: {str(error).splitlines()[0]}") from None
    finally:
        # Whatever happened, its batch need not wait for a heartbeat; the server may end on hearing it, unanswered.
        with contextlib.suppress(RuntimeError):
            client.leave()
        torch_rpc.close()


def _run(client: torch_rpc.Client, laned: LanedModel, compute: BatchGradient) -> None:
    lease = client.push_pull(None).lease
    while lease is not None:
        laned.receive()
        result = compute(lease.batch)
        laned.send(lease.slot)
        lease = client.push_pull(Push(lease, *result)).lease


def _run_ahead(client: torch_rpc.Client, laned: LanedModel, compute: BatchGradient) -> None:
    """One batch is computed while the gradient of the one before is pushed and the next lease is fetched."""
    with ThreadPoolExecutor(1, "courier") as courier:
        lease = client.push_pull(None).lease
        while lease is not None:
            laned.receive()
            coming = courier.submit(client.push_pull, None, (lease,))
            while lease is not None:
                result = compute(lease.batch)
                following = coming.result().lease
                # What has come stands in the lane until the next request: it must be taken out before that.
                laned.send(lease.slot)
                push = Push(lease, *result)
                if following is None:
                    break
                laned.receive()
                coming = courier.submit(client.push_pull, push, (following,))
                lease = following
            # Nothing to have ahead: the run ends, or the last batches are with others and may come back.
            lease = client.push_pull(push).lease


@contextlib.contextmanager
def _heartbeat(client: torch_rpc.Client, period_seconds: float) -> Iterator[None]:
    done = threading.Event()

    def beat() -> None:
        while not done.wait(period_seconds):
            try:
                client.beat()
            except RuntimeError as error:
                if not done.is_set():
                    # The main thread may wait for an answer that will never come.
                    print(f"psys: worker lost its server: {error}", file=sys.stderr, flush=True)
                    os._exit(1)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
