"""The state of each worker, from its calls, its heartbeats and its connection."""

from enum import Enum
from typing import NamedTuple


class State(Enum):
    """The state of a worker.

    JOINING  it was admitted and has not asked for a batch yet
    ACTIVE   it takes part: it may hold leases
    SUSPECT  it takes part and has been silent for half the timeout
    DEAD     its connection broke or it was silent for the timeout; its leases are due again
    LEFT     it left by itself; its name is not used again

    | from \\ event | admitted | asked  | heard  | silent T/2 | silent T | disconnected | left |
    | ------------- | -------- | ------ | ------ | ---------- | -------- | ------ | ---- |
    | (unknown)     | JOINING  |        |        |            |          |        |      |
    | JOINING       | JOINING  | ACTIVE | -      | -          | DEAD     | DEAD   | LEFT |
    | ACTIVE        | -        | -      | -      | SUSPECT    | DEAD     | DEAD   | LEFT |
    | SUSPECT       | ACTIVE   | ACTIVE | ACTIVE | -          | DEAD     | DEAD   | LEFT |
    | DEAD          | JOINING  | ACTIVE | -      | -          | -        | -      | LEFT |
    | LEFT          |          |        | -      | -          | -        | -      | -    |

    -: no change; empty: KeyError, or no change for signs of an unknown worker. A worker that was only slow is DEAD
    until it asks again.
    """

    JOINING = "joining"
    ACTIVE = "active"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Change(NamedTuple):
    """The new state of a worker, and the reason."""

    worker: str
    state: State
    reason: str


class Membership:
    """States of workers by name. Times are seconds on the caller's monotonic clock; every event returns the changes."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._states: dict[str, State] = {}
        self._heard: dict[str, float] = {}

    def state(self, worker: str) -> State | None:
        """The worker's state; None if no worker of that name was ever admitted."""
        return self._states.get(worker)

    def admitted(self, worker: str, now: float) -> list[Change]:
        """`worker` was admitted, for the first time or again after its connection broke."""
        if self._states.get(worker) is State.LEFT:
            raise KeyError(f"{worker} has left")
        self._heard[worker] = now
        if self._states.get(worker) in (State.ACTIVE, State.SUSPECT):
            return self._become(worker, State.ACTIVE, "reconnected")
        return self._become(worker, State.JOINING, "admitted")

    def asked(self, worker: str, now: float) -> list[Change]:
        """`worker` asked for a batch. Raises KeyError of a worker that was never admitted, or has left."""
        if self._states.get(worker) in (None, State.LEFT):
            raise KeyError(f"{worker} is not in this run")
        self._heard[worker] = now
        return self._become(worker, State.ACTIVE, "asked")

    def heard(self, worker: str, now: float) -> list[Change]:
        """`worker` gave a sign of life."""
        if worker in self._states:
            self._heard[worker] = now
        if self._states.get(worker) is State.SUSPECT:
            return self._become(worker, State.ACTIVE, "heard")
        return []

    def disconnected(self, worker: str) -> list[Change]:
        """The connection to `worker` broke."""
        return self._become(worker, State.DEAD, "disconnected") if self._lives(worker) else []

    def left(self, worker: str) -> list[Change]:
        """`worker` left by itself."""
        return self._become(worker, State.LEFT, "left") if worker in self._states else []

    def looked(self, now: float) -> list[Change]:
        """Time has passed."""
        changes: list[Change] = []
        for worker in list(self._states):
            silence = now - self._heard[worker]
            if self._lives(worker) and silence > self._timeout:
                changes += self._become(worker, State.DEAD, "silent")
            elif self._states[worker] is State.ACTIVE and silence > self._timeout / 2:
                changes += self._become(worker, State.SUSPECT, "silent")
        return changes

    def _lives(self, worker: str) -> bool:
        return self._states.get(worker) in (State.JOINING, State.ACTIVE, State.SUSPECT)

    def _become(self, worker: str, state: State, reason: str) -> list[Change]:
        if self._states.get(worker) is state:
            return []
        self._states[worker] = state
        return [Change(worker, state, reason)]
