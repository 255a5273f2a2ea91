"""The table in State's docstring is the specification: every cell of it, and random histories that follow it."""

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
    """What stands in State's docstring: a state's name, "-" or nothing, by the state before (None: unknown), event."""
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


def brought_to(state: State | None) -> Membership:
    """Ann is in `state`; what was last heard of her, if anything, was at 0 s."""
    members = Membership(TIMEOUT)
    steps: dict[State | None, list[Callable[[], list[Change]]]] = {
        None: [],
        State.JOINING: [],
        State.ACTIVE: [lambda: members.asked("ann", 0)],
        State.SUSPECT: [lambda: members.asked("ann", 0), lambda: members.looked(TIMEOUT * 0.6)],
        State.DEAD: [lambda: members.broken("ann")],
        State.LEFT: [lambda: members.left("ann")],
    }
    if state:
        members.admitted("ann", 0)
    for step in steps[state]:
        step()
    assert members.state("ann") is state
    return members


def test_the_table_has_every_state_and_event() -> None:
    events = ["admitted", "asked", "heard", "silent T/2", "silent T", "broken", "left"]
    assert list(TABLE) == [(state, event) for state in [None, *State] for event in events]


@pytest.mark.parametrize(("state", "event"), TABLE)
def test_a_cell(state: State | None, event: str) -> None:
    members = brought_to(state)
    now = TIMEOUT * 0.6
    happenings: dict[str, Callable[[], list[Change]]] = {
        "admitted": lambda: members.admitted("ann", now),
        "asked": lambda: members.asked("ann", now),
        "heard": lambda: members.heard("ann", now),
        "silent T/2": lambda: members.looked(now),
        "silent T": lambda: members.looked(TIMEOUT * 1.1),
        "broken": lambda: members.broken("ann"),
        "left": lambda: members.left("ann"),
    }
    happen = happenings[event]
    if is_key_error(state, event):
        with pytest.raises(KeyError, match="ann"):
            happen()
        assert members.state("ann") is state
        return
    changes = happen()
    assert members.state("ann") is after(state, event)
    assert [(change.worker, change.state) for change in changes] == (
        [("ann", after(state, event))] if after(state, event) is not state else []
    )


@pytest.mark.parametrize(("bound", "state"), [(TIMEOUT / 2, State.SUSPECT), (TIMEOUT, State.DEAD)])
def test_a_silence_must_be_longer_than_its_bound(bound: float, state: State) -> None:
    members = brought_to(State.ACTIVE)
    members.looked(bound)
    assert members.state("ann") is not state
    assert members.looked(math.nextafter(bound, math.inf)) == [Change("ann", state, "silent")]


def test_who_joins_is_not_suspected_but_dies_of_silence_all_the_same() -> None:
    members = brought_to(State.JOINING)
    assert members.looked(TIMEOUT) == []
    assert members.looked(TIMEOUT * 1.1) == [Change("ann", State.DEAD, "silent")]


def test_reasons_tell_how_it_came() -> None:
    members = Membership(TIMEOUT)
    assert members.admitted("ann", 0) == [Change("ann", State.JOINING, "admitted")]
    assert members.asked("ann", 1) == [Change("ann", State.ACTIVE, "asked")]
    assert members.looked(7) == [Change("ann", State.SUSPECT, "silent")]
    assert members.heard("ann", 7) == [Change("ann", State.ACTIVE, "heard")]
    assert members.looked(13) == [Change("ann", State.SUSPECT, "silent")]
    assert members.admitted("ann", 13) == [Change("ann", State.ACTIVE, "reconnected")]
    assert members.broken("ann") == [Change("ann", State.DEAD, "broken")]
    assert members.left("ann") == [Change("ann", State.LEFT, "left")]


class MembershipMachine(RuleBasedStateMachine):
    """The reference is the table with the time of each one's last sign. Whoever follows the changes, taking back what
    the DEAD and LEFT hold, never leaves a lease with one that does not take part."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Membership(TIMEOUT)
        self.now = 0.0
        self.expected: dict[str, State] = {}
        self.heard: dict[str, float] = {}
        self.holders: set[str] = set()

    def follow(self, changes: list[Change], events: dict[str, str]) -> None:
        """`events`: what has happened to whom."""
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
    def give_a_sign(self, worker: str, event: str) -> None:
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

    @rule(worker=st.sampled_from(NAMES), event=st.sampled_from(["broken", "left"]))
    def go(self, worker: str, event: str) -> None:
        happen = {"broken": self.members.broken, "left": self.members.left}[event]
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
    def states_are_those_of_the_table(self) -> None:
        assert {name: self.members.state(name) for name in NAMES} == {name: self.expected.get(name) for name in NAMES}

    @invariant()
    def only_those_who_take_part_hold_leases(self) -> None:
        assert {self.members.state(name) for name in self.holders} <= {State.ACTIVE, State.SUSPECT}


TestMembership = MembershipMachine.TestCase
TestMembership.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
