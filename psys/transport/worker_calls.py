"""The calls of one worker, in order: what a worker does, apart from how its calls travel and where it runs."""

import math
from collections.abc import Callable, Generator
from typing import NamedTuple

from psys.ps.messages import Grant, Lease, Push
from psys.transport.buffered_model import BufferedModel


class Call(NamedTuple):
    """The arguments of a push_pull."""

    push: Push | None
    holding: tuple[Lease, ...] = ()


Calls = Generator[Call | None, Grant | None, None]
"""Yields each call when it is due, and None when the reply to the last call is needed: the reply is sent to it."""


def worker_calls(model: BufferedModel, compute: Callable[[Lease, Grant], Push], prefetch: int) -> Calls:
    """The calls of a worker until a reply ends the run.

    `compute` leaves the gradient of a lease's batch in the lease's slot; it gets the grant that brought the lease. With
    `prefetch` 1, a batch is computed between a call and its reply.
    """
    return _calls_ahead(model, compute) if prefetch else _calls_in_turn(model, compute)


def _calls_in_turn(model: BufferedModel, compute: Callable[[Lease, Grant], Push]) -> Calls:
    yield Call(None)
    grant = yield from _reply()
    while grant.lease is not None:
        model.receive(grant.lease.slot)
        yield Call(compute(grant.lease, grant))
        grant = yield from _reply()


def _calls_ahead(model: BufferedModel, compute: Callable[[Lease, Grant], Push]) -> Calls:
    """One batch is computed while the gradient of the batch before is pushed and the next lease is fetched."""
    yield Call(None)
    grant = yield from _reply()
    while (lease := grant.lease) is not None:
        model.receive(lease.slot)
        yield Call(None, (lease,))
        while True:
            push = compute(lease, grant)
            following = yield from _reply()
            if following.lease is None:
                break
            model.receive(following.lease.slot)
            if math.isfinite(push.gradient_norm):
                # The servers do not have this gradient yet, and will have applied it before the following one.
                gradient = model.models[lease.slot].gradient
                model.models[following.lease.slot].parameters.sub_(gradient, alpha=following.gradient_look_ahead)
            grant, lease = following, following.lease
            yield Call(push, (lease,))
        # No batch can be leased in advance: the run ends, or the last batches are leased to other workers.
        yield Call(push)
        grant = yield from _reply()


def _reply() -> Generator[None, Grant | None, Grant]:
    grant = yield None
    assert grant is not None, "a reply was needed"
    return grant
