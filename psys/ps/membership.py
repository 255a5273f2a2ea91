"""Who takes part: what is known of each worker, from its calls, its beats and its connection."""

from enum import Enum
from typing import NamedTuple


class State(Enum):
    """What a worker is to the run.

    JOINING  it came through the door and has not asked for work yet
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

    -: stays as it is; empty: KeyError, or nothing for signs of nobody. Who was only slow is DEAD until it asks again.
    """

    JOINING = "joining"
    ACTIVE = "active"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Change(NamedTuple):
    """A worker that is something else now, and why."""

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
        """None: nobody of that name ever came."""
        return self._states.get(worker)

    def admitted(self, worker: str, now: float) -> list[Change]:
        """`worker` came through the door, for the first time or again after its connection broke."""
        if self._states.get(worker) is State.LEFT:
            raise KeyError(f"{worker} has left")
        self._heard[worker] = now
        if self._states.get(worker) in (State.ACTIVE, State.SUSPECT):
            return self._become(worker, State.ACTIVE, "reconnected")
        return self._become(worker, State.JOINING, "admitted")

    def asked(self, worker: str, now: float) -> list[Change]:
        """`worker` asked for work. Raises KeyError of one that was never admitted, or has left."""
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
        """The connection to `worker` has ended without a good-bye."""
        return self._become(worker, State.DEAD, "disconnected") if self._lives(worker) else []

    def left(self, worker: str) -> list[Change]:
        """`worker` said good-bye."""
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
