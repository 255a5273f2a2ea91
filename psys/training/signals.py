"""SIGINT, SIGTERM and SIGHUP as requests to stop, which a training answers when it has saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from psys.cluster.processes import leave_signals


@contextlib.contextmanager
def stop_signals_recorded() -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGHUP do not end this process within the block; the list yielded holds those received.

    A SIGHUP that is ignored, as under `nohup`, stays ignored. Only the main thread can set signal handlers: in another
    one the block changes nothing, and the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, *leave_signals())
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
