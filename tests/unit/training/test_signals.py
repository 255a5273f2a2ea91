"""Requests to stop are recorded within a block, and signal handlers are as before after it."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from psys.training.signals import stop_signals_recorded

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def default_hangup_handler() -> Iterator[None]:
    """A suite that was started by `nohup` ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_signals_are_recorded_and_handlers_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_signals_recorded() as received:
        for number in STOP_SIGNALS:
            signal.raise_signal(number)
    assert received == [*STOP_SIGNALS]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_ignored_sighup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_signals_recorded() as received:
        signal.raise_signal(signal.SIGHUP)
    assert received == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_another_thread_sets_no_handlers() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    def enter() -> bool:
        with stop_signals_recorded() as received:
            return [signal.getsignal(number) for number in STOP_SIGNALS] == before and received == []

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(enter).result()
