"""The pool without a running actor, with a fake Ray; and interrupts during Ray's calls."""

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from psys.segment.actors import NO_ACTOR_SECONDS, Pool, checked_interrupts
from psys.segment.task import ImageTask, Recipe, prepare_images


class _FakeRay(ModuleType):
    """`wait` times out `timeouts` times; then actors are ready, and `get` carries out a call."""

    exceptions = SimpleNamespace(
        **{
            name: type(name, (Exception,), {})
            for name in ("RayActorError", "ObjectLostError", "OutOfMemoryError", "NodeDiedError", "WorkerCrashedError")
        }
    )

    def __init__(self, timeouts: int) -> None:
        super().__init__("ray")
        self.timeouts = timeouts

    def remote(self, **options: Any) -> Any:
        def method(function: Any) -> Any:
            return SimpleNamespace(remote=lambda *arguments: lambda: function(*arguments))

        def actor(cls: type) -> Any:
            def start(recipe: Recipe) -> Any:
                return SimpleNamespace(
                    __ray_ready__=method(lambda: True), prepare=method(lambda task: prepare_images(task, recipe))
                )

            return SimpleNamespace(remote=start)

        return actor

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout == NO_ACTOR_SECONDS
        self.timeouts -= 1
        return ([], references) if self.timeouts >= 0 else (references[:1], references[1:])

    def get(self, reference: Any) -> Any:
        return reference()


def test_pool_logs_while_no_actor_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", _FakeRay(timeouts=2))
    logged: list[str] = []
    images = np.zeros((2, 8, 8, 3), np.uint8)

    pool = Pool(1, Recipe(8), logged.append)
    results = dict(pool.prepare(iter({"a": ImageTask(images)}.items())))

    assert results["a"].rows.tolist() == [0, 1]
    assert logged == ["no actor: Ray is starting one or waits for a node with a free CPU"] * 2


@pytest.fixture(autouse=True)
def default_interrupt_handler() -> Iterator[None]:
    """Python's own handler of SIGINT, also if this process was started with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_discarded_interrupt_is_raised_again() -> None:
    with checked_interrupts() as raise_if_interrupted:
        raise_if_interrupted()
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_existing_interrupt_handler_is_kept() -> None:
    caught: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        with checked_interrupts() as raise_if_interrupted:
            signal.raise_signal(signal.SIGINT)
            raise_if_interrupted()
    finally:
        signal.signal(signal.SIGINT, previous)

    assert caught == [signal.SIGINT]


def test_checked_interrupts_works_in_a_thread() -> None:
    def enter() -> bool:
        with checked_interrupts() as raise_if_interrupted:
            raise_if_interrupted()
            return True

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(enter).result()
