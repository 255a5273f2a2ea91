"""The table in State's docstring is the specification: its transitions, and random sequences of events."""

import math
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from psys.ps.membership import Change, Membership, State

TIMEOUT = 10.0
NAMES = ["ann", "bob", "cid"]


def read_table() -> dict[tuple[State | None, str], str]:
    """The table in State's docstring: the cell by the state before (None: unknown) and the event."""
    lines = [line.strip() for line in str(State.__doc__).splitlines() if line.strip().startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    states = {name: State.__members__.get(name) for name, *_ in rows}
    return {(states[name], event): cell for name, *cells in rows for event, cell in zip(head[1:], cells, strict=True)}


TABLE = read_table()


def after(state: State | None, event: str) -> State | None:
    """The state that follows by the table."""
    cell = TABLE[state, event]
    return State[cell] if cell in State.__members__ else state


def is_key_error(state: State | None, event: str) -> bool:
    return TABLE[state, event] == "" and event in ("admitted", "asked")


def membership_in(state: State | None) -> Membership:
    """A membership with worker ann in `state`, last heard of at 0 s."""
    members = Membership(TIMEOUT)
    steps: dict[State | None, list[Callable[[], list[Change]]]] = {
        None: [],
        State.JOINING: [],
        State.ACTIVE: [lambda: members.asked("ann", 0)],
        State.SUSPECT: [lambda: members.asked("ann", 0), lambda: members.looked(TIMEOUT * 0.6)],
        State.DEAD: [lambda: members.disconnected("ann")],
        State.LEFT: [lambda: members.left("ann")],
    }
    if state:
        members.admitted("ann", 0)
    for step in steps[state]:
        step()
    assert members.state("ann") is state
    return members


def test_the_table_has_every_state_and_event() -> None:
    events = ["admitted", "asked", "heard", "silent T/2", "silent T", "disconnected", "left"]
    assert list(TABLE) == [(state, event) for state in [None, *State] for event in events]


@pytest.mark.parametrize(("state", "event"), TABLE)
def test_transition_of_the_table(state: State | None, event: str) -> None:
    members = membership_in(state)
    now = TIMEOUT * 0.6
    transitions: dict[str, Callable[[], list[Change]]] = {
        "admitted": lambda: members.admitted("ann", now),
        "asked": lambda: members.asked("ann", now),
        "heard": lambda: members.heard("ann", now),
        "silent T/2": lambda: members.looked(now),
        "silent T": lambda: members.looked(TIMEOUT * 1.1),
        "disconnected": lambda: members.disconnected("ann"),
        "left": lambda: members.left("ann"),
    }
    transition = transitions[event]
    if is_key_error(state, event):
        with pytest.raises(KeyError, match="ann"):
            transition()
        assert members.state("ann") is state
        return
    changes = transition()
    assert members.state("ann") is after(state, event)
    assert [(change.worker, change.state) for change in changes] == (
        [("ann", after(state, event))] if after(state, event) is not state else []
    )


@pytest.mark.parametrize(("bound", "state"), [(TIMEOUT / 2, State.SUSPECT), (TIMEOUT, State.DEAD)])
def test_silence_counts_once_it_is_longer_than_its_bound(bound: float, state: State) -> None:
    members = membership_in(State.ACTIVE)
    members.looked(bound)
    assert members.state("ann") is not state
    assert members.looked(math.nextafter(bound, math.inf)) == [Change("ann", state, "silent")]


def test_joining_worker_is_dead_after_silence_without_being_suspected() -> None:
    members = membership_in(State.JOINING)
    assert members.looked(TIMEOUT) == []
    assert members.looked(TIMEOUT * 1.1) == [Change("ann", State.DEAD, "silent")]


def test_changes_have_a_reason() -> None:
    members = Membership(TIMEOUT)
    assert members.admitted("ann", 0) == [Change("ann", State.JOINING, "admitted")]
    assert members.asked("ann", 1) == [Change("ann", State.ACTIVE, "asked")]
    assert members.looked(7) == [Change("ann", State.SUSPECT, "silent")]
    assert members.heard("ann", 7) == [Change("ann", State.ACTIVE, "heard")]
    assert members.looked(13) == [Change("ann", State.SUSPECT, "silent")]
    assert members.admitted("ann", 13) == [Change("ann", State.ACTIVE, "reconnected")]
    assert members.disconnected("ann") == [Change("ann", State.DEAD, "disconnected")]
    assert members.left("ann") == [Change("ann", State.LEFT, "left")]


class MembershipMachine(RuleBasedStateMachine):
    """The reference is the table, with the time of each worker's last sign of life. A caller that follows the changes
    and takes leases back from DEAD and LEFT workers leaves no lease with a worker that does not take part."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Membership(TIMEOUT)
        self.now = 0.0
        self.expected: dict[str, State] = {}
        self.heard: dict[str, float] = {}
        self.holders: set[str] = set()

    def follow(self, changes: list[Change], events: dict[str, str]) -> None:
        """`events`: what happened, by worker."""
        due = []
        for worker, event in events.items():
            before = self.expected.get(worker)
            state = after(before, event)
            if state and state is not before:
                self.expected[worker] = state
                due.append((worker, state))
        assert [(change.worker, change.state) for change in changes] == due
        for worker, state, _ in changes:
            if state in (State.DEAD, State.LEFT):
                self.holders.discard(worker)

    @rule(worker=st.sampled_from(NAMES), event=st.sampled_from(["admitted", "asked", "heard"]))
    def sign_of_life(self, worker: str, event: str) -> None:
        happen = {"admitted": self.members.admitted, "asked": self.members.asked, "heard": self.members.heard}[event]
        if is_key_error(self.expected.get(worker), event):
            with pytest.raises(KeyError):
                happen(worker, self.now)
            return
        self.follow(happen(worker, self.now), {worker: event})
        if worker in self.expected:
            self.heard[worker] = self.now
        if event == "asked":
            self.holders.add(worker)

    @rule(worker=st.sampled_from(NAMES), event=st.sampled_from(["disconnected", "left"]))
    def leave(self, worker: str, event: str) -> None:
        happen = {"disconnected": self.members.disconnected, "left": self.members.left}[event]
        self.follow(happen(worker), {worker: event})

    # Whole seconds, so that a silence is often exactly as long as its bound.
    @rule(seconds=st.integers(0, 6))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def look(self) -> None:
        silences = {worker: self.now - self.heard[worker] for worker in self.expected}
        bounds = {"silent T": TIMEOUT, "silent T/2": TIMEOUT / 2}
        events = {
            worker: next(event for event, bound in bounds.items() if silence > bound)
            for worker, silence in silences.items()
            if silence > TIMEOUT / 2
        }
        self.follow(self.members.looked(self.now), events)

    @invariant()
    def states_follow_the_table(self) -> None:
        assert {name: self.members.state(name) for name in NAMES} == {name: self.expected.get(name) for name in NAMES}

    @invariant()
    def leases_are_held_by_workers_that_take_part(self) -> None:
        assert {self.members.state(name) for name in self.holders} <= {State.ACTIVE, State.SUSPECT}


TestMembership = MembershipMachine.TestCase
TestMembership.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
