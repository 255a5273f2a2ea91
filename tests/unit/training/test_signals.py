"""Requests to stop are recorded within a block, and signal handlers are as before after it."""

import signal
from concurrent.futures import ThreadPoolExecutor

from psys.training.signals import stop_signals_recorded

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def test_signals_are_recorded_and_handlers_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_signals_recorded() as received:
        for number in STOP_SIGNALS:
            signal.raise_signal(number)
    assert received == [*STOP_SIGNALS]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_another_thread_sets_no_handlers() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    def enter() -> bool:
        with stop_signals_recorded() as received:
            return [signal.getsignal(number) for number in STOP_SIGNALS] == before and received == []

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(enter).result()
