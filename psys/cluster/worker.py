"""A worker: lease in, augmented views, gradient out, until the server has no more work."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from psys.augment.batch import augment
from psys.cluster import torch_rpc
from psys.cluster.config import RunConfig
from psys.cluster.transport import Push
from psys.compute.device import choose_device, choose_precision
from psys.compute.flat import FlatModel
from psys.compute.step import gradient_step
from psys.config import validate
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.models.registry import build
from psys.ps.ledger import Lease, batch_seed, samples_of
from psys.ps.store import Snapshot

_BEATS_PER_TIMEOUT = 5


class BatchGradient:
    """Computes the gradient of any batch of the run, which depends on batch and snapshot, not on who computes it."""

    def __init__(self, config: RunConfig, store: PreparedStore, device: torch.device) -> None:
        self._config, self._device = config, device
        self._mean, self._std = store.channel_mean, store.channel_std
        self._split = store.split("train")
        self._chosen, _ = holdout(self._split.labels, config.validation_share, config.seed)
        self.samples = len(self._chosen)
        self._precision = choose_precision(config.precision, device)
        self._generator = torch.Generator(device)
        self.model = FlatModel(build(config.model, len(store.classes)).to(device))

    def __call__(self, lease: Lease, snapshot: Snapshot) -> Push:
        """The lease's gradient on the snapshot. The push aliases the model's vectors: send it before the next call."""
        config = self._config
        self.model.load(snapshot.parameters, snapshot.statistics)
        indices = self._chosen[samples_of(lease.batch, self.samples, config.batch_size, config.seed).numpy()]
        rows = [torch.from_numpy(np.asarray(column[indices])).to(self._device) for column in self._split]
        images, labels, masks, usable = rows
        self._generator.manual_seed(batch_seed(config.seed, lease.batch, stream=1))
        views, targets = augment(images, labels, masks, usable, config.augment, self._mean, self._std, self._generator)
        result = gradient_step(self.model, views, targets, self._precision, config.label_smoothing)
        return Push(lease, self.model.gradient.cpu(), self.model.statistics.cpu(), *result)


def work(host: str, port: int, threads: int, store_path: Path | None = None) -> None:
    """Join the server at host:port and compute until the run is over.

    `store_path`: where this machine has the prepared store, if not where the run's settings say.
    Raises PsysError when there is no server, or the store here is not the server's.
    """
    torch.set_num_threads(threads)
    client = torch_rpc.connect(host, port)
    try:
        welcome = client.hello()
        config = validate(RunConfig, json.loads(welcome.settings), where=f"settings of the server at {host}:{port}")
        store = PreparedStore.open(store_path or config.store)
        if store.content_hash != welcome.store_hash:
            raise PsysError(f"the store at {store.path} is not the server's: copy that one, or name it with --store")
        compute = BatchGradient(config, store, choose_device(int(os.environ.get("LOCAL_RANK", client.worker))))
        with _heartbeat(client, config.heartbeat_timeout / _BEATS_PER_TIMEOUT):
            todo = client.push_pull(None).wait()
            while todo.lease is not None:
                todo = client.push_pull(compute(todo.lease, todo.snapshot)).wait()
    except RuntimeError as error:
        if not torch_rpc.is_connection_error(error):
            raise
        raise PsysError(f"lost the server at {host}:{port}: {str(error).splitlines()[0]}") from None
    finally:
        # Whatever happened, its batch need not wait for a heartbeat; the server may end on hearing it, unanswered.
        with contextlib.suppress(RuntimeError):
            client.leave()
        torch_rpc.close()


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
