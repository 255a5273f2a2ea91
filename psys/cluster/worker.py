"""A worker: lease in, augmented views, gradient out, until the server has no more work."""

import math
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Self

import torch

from psys.compute.batches import Batches
from psys.compute.device import choose_device, choose_precision, keep_freed_memory
from psys.compute.flat import FlatModel
from psys.compute.step import GradientStep, StepResult
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.models.registry import build
from psys.ps.coordinator import Grant
from psys.ps.ledger import Lease
from psys.run.config import RunConfig
from psys.run.faults import suffer
from psys.transport.buffered_model import LanedModel
from psys.transport.protocol import Push
from psys.transport.reconnect import RestartedError, Session


class BatchGradient:
    """Computes the gradient of any batch of the run, which depends on batch and parameters, not on who computes it."""

    def __init__(self, config: RunConfig, store: PreparedStore, *models: FlatModel) -> None:
        device = models[0].parameters.device
        self.batches = Batches(config, store, device)
        self.samples = self.batches.samples
        precision = choose_precision(config.precision, device)
        self._steps = {model: GradientStep(model, precision, config.label_smoothing) for model in models}

    def __call__(self, batch: int, model: FlatModel) -> StepResult:
        """Leave the batch's gradient at the model's parameters in the model's gradient, and its statistics there."""
        return self._steps[model](*self.batches[batch])


class Leaving(BaseException):
    """This worker was told to go."""


def work(host: str, port: int, threads: int, token: str, store_path: Path | None = None) -> None:
    """Join the run at host:port and compute until it is over, or SIGTERM: what was begun then goes to another worker.

    `store_path`: where this machine has the prepared store, if not where the run's settings say.
    Raises PsysError when there is no server or it stays away, it wants another token, or the store here is not its own.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    session: Session | None = None
    try:
        session = Session(host, port, token)
        config, admission = session.config, session.admission
        store = PreparedStore.open(store_path or config.store, config.image_size)
        if store.content_hash != admission.store_hash:
            raise PsysError(f"the store at {store.path} is not the server's: copy that one, or name it with --store")
        device = choose_device(int(os.environ.get("LOCAL_RANK", admission.number)))
        laned = LanedModel(build(config.model, len(store.classes)).to(device), config)
        compute = BatchGradient(config, store, *laned.models)
        steps = _Steps(session, laned, compute)
        session.attach(laned.lane)
        run = _run_ahead if config.prefetch else _run
        while True:
            try:
                run(session, laned, steps)
                break
            except RestartedError:
                continue
    except Leaving:
        pass
    finally:
        if session:
            session.close()


def leave_at_sigterm() -> None:
    """From now on SIGTERM means: leave the run in order."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Leaving

    signal.signal(signal.SIGTERM, leave)


class _Steps:
    """Computes batch after batch, with what the fault plan has for this worker."""

    def __init__(self, session: Session, laned: LanedModel, compute: BatchGradient) -> None:
        self._session, self._laned, self._compute = session, laned, compute
        self._step = 0

    def expect(self, lease: Lease | None) -> None:
        """It comes after the one that is being computed."""
        if lease is not None:
            self._compute.batches.expect(lease.batch)

    def __call__(self, lease: Lease) -> Push:
        """Leave the gradient of the batch in the lease's slot."""
        model = self._laned.models[lease.slot]
        result = self._compute(lease.batch, model)
        admission = self._session.admission
        for fault in admission.faults.at(admission.number, self._step):
            self._session.tell(fault.model_dump(mode="json", exclude={"worker"}))
            if fault.kind == "nan":
                model.gradient.fill_(math.nan)  # as of a loss that is not finite
                result = result._replace(gradient_norm=math.nan)
            elif fault.kind == "drop_reply":
                self._session.drop_reply(lease)
            else:
                suffer(fault)
        # The server will not read what is damaged, but top-k would remember it.
        if math.isfinite(result.gradient_norm):
            self._laned.send(lease.slot)
        self._step += 1
        return Push(lease, *result)


def _run(session: Session, laned: LanedModel, compute: _Steps) -> None:
    lease = session.push_pull(None).lease
    while lease is not None:
        laned.receive(lease.slot)
        lease = session.push_pull(compute(lease)).lease


def _run_ahead(session: Session, laned: LanedModel, compute: _Steps) -> None:
    """One batch is computed while the gradient of the one before is pushed and the next lease is fetched."""

    def fetch(push: Push | None, held: Lease) -> Grant:
        following = session.push_pull(push, (held,))
        compute.expect(following.lease)
        return following

    with _Courier(fetch) as courier:
        lease = session.push_pull(None).lease
        while lease is not None:
            laned.receive(lease.slot)
            coming = courier.send(None, lease)
            while True:
                push = compute(lease)
                following = coming.result()
                if following.lease is None:
                    break
                laned.receive(following.lease.slot)
                if math.isfinite(push.gradient_norm):
                    # Nobody else knows yet what this gradient will change.
                    gradient = laned.models[lease.slot].gradient
                    laned.models[following.lease.slot].parameters.sub_(gradient, alpha=following.reach)
                lease = following.lease
                coming = courier.send(push, lease)
            # Nothing to have ahead: the run ends, or the last batches are with others and may come back.
            lease = session.push_pull(push).lease


class _Courier:
    """Calls `fetch` in a thread of its own, which nobody waits for when this worker goes, as an executor would."""

    def __init__(self, fetch: Callable[[Push | None, Lease], Grant]) -> None:
        self._fetch = fetch
        self._errands: SimpleQueue[tuple[Future[Grant], Push | None, Lease] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="courier", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._errands.put(None)

    def send(self, push: Push | None, held: Lease) -> "Future[Grant]":
        coming: Future[Grant] = Future()
        self._errands.put((coming, push, held))
        return coming

    def _run(self) -> None:
        while errand := self._errands.get():
            coming, push, held = errand
            try:
                coming.set_result(self._fetch(push, held))
            except BaseException as error:
                coming.set_exception(error)
