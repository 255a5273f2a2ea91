"""When a process that died is started again."""

import signal

from psys.cluster.restarts import RestartPolicy
from psys.run.config import RestartConfig

CONFIG = RestartConfig(failures=3, kills=5, first_pause=0.5, longest_pause=1.5, stable_after=10.0)
KILLED = -signal.SIGKILL


def test_pauses_grow_until_the_process_is_not_restarted() -> None:
    policy = RestartPolicy(CONFIG)
    assert [policy.pause_after(1, lived=0.1) for _ in range(4)] == [0.0, 0.5, 1.0, None]


def test_kills_are_counted_apart_from_failures() -> None:
    policy = RestartPolicy(CONFIG)
    assert [policy.pause_after(KILLED, lived=0.1) for _ in range(6)] == [0.0, 0.5, 1.0, 1.5, 1.5, None]
    policy = RestartPolicy(CONFIG)
    codes = [1, KILLED, 1, KILLED, 1, KILLED, 1]
    assert [policy.pause_after(code, lived=0.1) for code in codes] == [0.0, 0.5, 1.0, 1.5, 1.5, 1.5, None]


def test_a_long_life_clears_earlier_deaths() -> None:
    policy = RestartPolicy(CONFIG)
    for _ in range(3):
        policy.pause_after(1, lived=0.1)
    assert policy.pause_after(1, lived=10.1) == 0.0
    assert policy.pause_after(1, lived=0.1) == 0.5


def test_no_restarts() -> None:
    policy = RestartPolicy(RestartConfig(failures=0, kills=0))
    assert policy.pause_after(1, lived=100.0) is None
    assert policy.pause_after(KILLED, lived=100.0) is None
