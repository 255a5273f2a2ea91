"""Ray actors that prepare images, on this machine or on a running cluster."""

import logging
import os
import secrets
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import cv2

from psys.cores import available_cores
from psys.errors import PsysError, reason_of
from psys.ray_cluster import RAY_SETTINGS, joined_cluster
from psys.segment.guard import guarded
from psys.segment.task import Failure, ImageTask, Prepared, Recipe, prepare_images
from psys.temporary import folder_for_sockets

OBJECT_STORE_BYTES = 64 * 2**20  # per actor, for tasks in flight
_RAY_SOCKET_BYTES = 90  # of "/psys-ray-XXXXXXXX/session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store"
TASKS_PER_ACTOR = 2  # one running and one queued
TASK_DEATHS = 2  # actor deaths during a task, after which its images are prepared one by one
IMAGE_DEATHS = 2  # actor deaths during one image, after which the image is reported as a failure
START_DEATHS = 20  # consecutive deaths of actors that did not become ready
NO_ACTOR_SECONDS = 60.0  # interval of the message that no actor is running


NameT = TypeVar("NameT")


class Segmenter:
    """The actor: prepares one task at a time on one core."""

    def __init__(self, recipe: Recipe) -> None:
        cv2.setNumThreads(1)
        self._recipe = recipe

    def prepare(self, task: ImageTask) -> Prepared:
        return prepare_images(task, self._recipe)


# Without this variable a local Ray listens on the machine's address, whatever address is configured.
LOOPBACK_SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def ray_session(actors: int | None, address: str | None) -> Iterator[int]:
    """Connect to the Ray cluster at `address`, or start a local Ray that listens on loopback only, within the block.

    Yields the number of actors: `actors`, or one for each core of this process or CPU of the cluster.
    Raises PsysError if the cluster does not answer or has fewer CPUs than actors, or if actors cannot be started.
    """
    if address is None:
        actors = actors or available_cores()
        with _local_ray(actors):
            yield actors
        return
    with joined_cluster(address) as resources:
        cpus = int(resources.get("CPU", 0))
        actors = actors or max(1, cpus)
        if actors > cpus:
            raise PsysError(f"the Ray cluster at {address} has {cpus} CPUs: too few for {actors} actors")
        yield actors


def _need_no_home() -> None:
    """Give a local Ray its token if it could not write one to the home directory, as for a user of a container."""
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def _local_ray(actors: int) -> Iterator[None]:
    os.environ.update(RAY_SETTINGS | LOOPBACK_SETTINGS)
    _need_no_home()
    import ray

    folder = Path(tempfile.mkdtemp(prefix="psys-ray-", dir=folder_for_sockets(_RAY_SOCKET_BYTES)))
    with guarded(folder):
        try:
            ray.init(
                address="local",
                _temp_dir=str(folder),
                num_cpus=actors,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=max(2, actors) * OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
            if not ip_address(listening := ray.util.get_node_ip_address()).is_loopback:
                raise PsysError(
                    f"Ray {ray.__version__} listens on {listening}, expected loopback: use another version of Ray"
                )
            yield
        except ray.exceptions.RayError as error:
            raise PsysError(f"a segmentation actor failed: {reason_of(error)}") from error
        finally:
            ray.shutdown()


@contextmanager
def checked_interrupts() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if SIGINT was received within the block.

    Ray may discard the KeyboardInterrupt of a signal that arrives during one of its calls.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def raise_if_interrupted() -> None:
        if received:
            raise KeyboardInterrupt

    # Only the main thread can set handlers, and a handler set by the application is kept.
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield raise_if_interrupted
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield raise_if_interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Job:
    """A task and its results so far, by the first row of each part."""

    def __init__(self, name: Any, task: ImageTask) -> None:
        self.name, self.task = name, task
        self.parts: dict[int, Prepared] = {}

    @property
    def done(self) -> bool:
        return sum(len(part.rows) + len(part.failures) for part in self.parts.values()) == len(self.task)


@dataclass
class _Attempt:
    """A call for a whole task or, after actors died, for one of its images."""

    job: _Job
    task: ImageTask
    first: int = 0  # row of the job's task where this attempt begins
    exclusive: bool = False  # the actor gets no other call, so that its death has one possible cause
    deaths: int = 0  # of actors during this attempt


@dataclass
class _Actor:
    handle: Any
    calls: deque[tuple[Any, _Attempt]] = field(default_factory=deque)  # in order, with the references to their results

    @property
    def load(self) -> int:
        return TASKS_PER_ACTOR if self.calls and self.calls[0][1].exclusive else len(self.calls)


class Pool:
    """Actors that prepare tasks; the calls of an actor that dies are repeated by another actor."""

    def __init__(self, actors: int, recipe: Recipe, log: Callable[[str], None]) -> None:
        """`log` is called with a message while no actor is running."""
        import ray

        self._ray = ray
        self._lost = (*(getattr(ray.exceptions, name) for name in _LOST),)
        # No restarts by Ray: what to repeat depends on the call during which an actor died.
        self._class: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Segmenter)
        self._recipe, self._log = recipe, log
        self._starting: dict[Any, _Actor] = {}  # by the reference of their `__ray_ready__` call
        self._actors: list[_Actor] = []
        self._queue: deque[_Attempt] = deque()
        self._start_deaths = 0
        self.deaths = 0
        for _ in range(actors):
            self._start_actor()

    @property
    def ready(self) -> int:
        """Number of running actors, without those that are starting."""
        return len(self._actors)

    def prepare(self, tasks: Iterator[tuple[NameT, ImageTask]]) -> Iterator[tuple[NameT, Prepared]]:
        """Yield the name and result of each (name, task), in any order.

        At most `TASKS_PER_ACTOR` tasks per actor are taken from `tasks` in advance. An image during which
        `IMAGE_DEATHS` actors died is a failure in the result. Raises RayError if actors cannot be started.
        """
        with checked_interrupts() as raise_if_interrupted:
            while True:
                raise_if_interrupted()
                self._submit(tasks)
                running = {actor.calls[0][0]: actor for actor in self._actors if actor.calls}
                if self._actors and not running:
                    return
                ready = next(iter(self._ray.wait([*running, *self._starting], timeout=NO_ACTOR_SECONDS)[0]), None)
                if ready is None:
                    if not self._actors:  # a cluster may replace nodes that it lost
                        self._log("no actor: Ray is starting one or waits for a node with a free CPU")
                elif ready in self._starting:
                    self._add_started(ready)
                elif job := self._collect(running[ready]):
                    yield job.name, Prepared.joined(job.parts)

    def _submit(self, tasks: Iterator[tuple[Any, ImageTask]]) -> None:
        while self._actors:
            actor = min(self._actors, key=lambda actor: actor.load)
            if actor.load == TASKS_PER_ACTOR:
                return
            if not self._queue:
                if (following := next(tasks, None)) is None:
                    return
                self._queue.append(_Attempt(_Job(*following), following[1]))
            if self._queue[0].exclusive and actor.calls:
                return
            attempt = self._queue.popleft()
            actor.calls.append((actor.handle.prepare.remote(attempt.task), attempt))

    def _collect(self, actor: _Actor) -> _Job | None:
        """Store the result of an actor's first call, which has ended; return the job if it is complete."""
        reference, attempt = actor.calls.popleft()
        try:
            attempt.job.parts[attempt.first] = self._ray.get(reference)
        except self._lost:
            self.deaths += 1
            self._actors.remove(actor)
            self._ray.kill(actor.handle)  # it may only be unreachable
            self._start_actor()
            self._repeat_or_fail(attempt)
            self._queue.extendleft(other for _, other in reversed(actor.calls))
        return attempt.job if attempt.job.done else None

    def _repeat_or_fail(self, attempt: _Attempt) -> None:
        """Repeat the attempt during which an actor died, split it into images, or report its image as a failure."""
        attempt.deaths += 1
        task = attempt.task
        if len(task) > 1:
            if attempt.deaths < TASK_DEATHS:
                self._queue.appendleft(attempt)
            else:
                rows = range(len(task))
                self._queue.extend(_Attempt(attempt.job, task.row(row), row, exclusive=True) for row in rows)
        elif attempt.deaths < IMAGE_DEATHS:
            attempt.exclusive = True
            self._queue.append(attempt)
        else:
            failure = Failure(0, f"{attempt.deaths} actors died while they prepared it", permanent=False)
            attempt.job.parts[attempt.first] = Prepared.failed(self._recipe, (failure,))

    def _start_actor(self) -> None:
        handle = self._class.remote(self._recipe)
        self._starting[handle.__ray_ready__.remote()] = _Actor(handle)

    def _add_started(self, ready: Any) -> None:
        actor = self._starting.pop(ready)
        try:
            self._ray.get(ready)
        except self._lost as error:
            self._start_deaths += 1
            if getattr(error, "actor_init_failed", False) or self._start_deaths == START_DEATHS:
                raise
            self._start_actor()
        else:
            self._start_deaths = 0
            self._actors.append(actor)


_LOST = ("RayActorError", "ObjectLostError", "OutOfMemoryError", "NodeDiedError", "WorkerCrashedError")
