"""A worker that is told to leave by a signal."""

import signal
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from psys.cluster import worker
from psys.cluster.worker import LeaveRequested, leave_at_signals, work
from psys.ps.messages import Grant
from psys.transport.worker_calls import Call, Calls

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    worker._leave_requests.clear()


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_requests_to_leave_and_further_ones_change_nothing(number: signal.Signals) -> None:
    leave_at_signals()
    with pytest.raises(LeaveRequested):
        signal.raise_signal(number)
    for again in SIGNALS:
        signal.raise_signal(again)


def test_worker_leaves_in_order_when_it_is_told_to_before_it_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: signal.raise_signal(signal.SIGTERM))
    leave_at_signals()
    assert work("127.0.0.1", 9, 1, "token") is False


def test_ignored_sighup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    leave_at_signals()
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_request_during_a_finalizer_is_answered_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def calls() -> Calls:
        yield Call(None)

    def start(call: Call) -> Callable[[], Grant]:
        raise AssertionError("a call was started")

    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.exc_type))
    leave_at_signals()
    Finalized()
    assert dropped == [LeaveRequested]
    with pytest.raises(LeaveRequested):
        worker._drive(calls(), start, called=lambda seconds, hidden: None)
