"""Ray actors that prepare shards, on this machine or on a running cluster; the only file that imports ray."""

import logging
import os
import signal
import socket
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

from psys.errors import PsysError
from psys.segment.guard import guarded
from psys.segment.task import Failure, ImageTask, Prepared, Recipe, prepare_images

OBJECT_STORE_BYTES = 64 * 2**20  # for each actor: some shards in flight
CONNECT_SECONDS = 10.0
SHARDS_PER_ACTOR = 2  # one is prepared, the next is there already
SHARD_DEATHS, IMAGE_DEATHS = 2, 2  # of actors, after which images are tried one by one, and one is given up
START_DEATHS = 20  # of actors that did not become ready, one after the other
SILENT_SECONDS = 60.0  # without an actor, after which it is said, again and again, what is waited for


NameT = TypeVar("NameT")


class Segmenter:
    """One core's share of the work."""

    def __init__(self, recipe: Recipe) -> None:
        cv2.setNumThreads(1)
        self._recipe = recipe

    def prepare(self, shard: ImageTask) -> Prepared:
        return prepare_images(shard, self._recipe)


# Ray reads these when it is imported: report nothing to the outside, and leave the actors' view of devices alone.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Without this a local Ray listens on the machine's own address, whatever address it is given.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def ray_session(actors: int | None, address: str | None) -> Iterator[int]:
    """Ray for the length of a block: the cluster at `address`, or a local one that only loopback can reach.

    Yields the number of actors: as asked, or one a core of this machine or of the cluster.
    Raises PsysError if the cluster does not answer or has fewer CPUs than actors, or if an actor is lost for good.
    """
    if address is not None:
        _check_answer(address)
    os.environ.update(QUIET if address else QUIET | LOOPBACK)
    if address and {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray has a token and does not show it otherwise
    import ray

    try:
        if address is None:
            actors = actors or os.cpu_count() or 1
            folder = Path(tempfile.mkdtemp(prefix="psys-ray-"))
            with guarded(folder):
                try:
                    _start_local(ray, actors, folder)
                    yield actors
                finally:
                    ray.shutdown()
            return
        cpus = _join(ray, address)
        actors = actors or max(1, cpus)
        if actors > cpus:
            raise PsysError(f"the Ray cluster at {address} has {cpus} CPUs: too few for {actors} actors")
        yield actors
    except ray.exceptions.RayError as error:
        raise PsysError(f"a segmentation actor failed: {' '.join(str(error).split())}") from error
    finally:
        ray.shutdown()


def _start_local(ray: Any, actors: int, folder: Path) -> None:
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
        raise PsysError(f"Ray {ray.__version__} listens on {listening} instead of loopback: use another version of Ray")


def _check_answer(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        # Ray itself would try for a quarter of an hour.
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise PsysError(
            f"nothing answers at ray_address {address}, expected HOST:PORT of a Ray cluster ({error})"
        ) from None


def _join(ray: Any, address: str) -> int:
    """Connect to a cluster; returns the number of its CPUs."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise PsysError(
            f"cannot join the Ray cluster at {address} ({reason}): is its token in RAY_AUTH_TOKEN?"
        ) from None
    return int(ray.cluster_resources().get("CPU", 0))


@contextmanager
def insisting_interrupt() -> Iterator[Callable[[], None]]:
    """Yields what raises KeyboardInterrupt if a Ctrl-C came: one that comes while Ray works may be lost in there."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def raise_if_interrupted() -> None:
        if came:
            raise KeyboardInterrupt

    # A thread may not set handlers; another handler is somebody's own decision about Ctrl-C.
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
    """A shard and what has been prepared of it, by the row where each part begins."""

    def __init__(self, name: Any, shard: ImageTask) -> None:
        self.name, self.shard = name, shard
        self.parts: dict[int, Prepared] = {}

    @property
    def done(self) -> bool:
        return sum(len(part.rows) + len(part.failures) for part in self.parts.values()) == len(self.shard)


@dataclass
class _Task:
    """A whole shard or, after its actors died, one image of it."""

    job: _Job
    shard: ImageTask
    first: int = 0
    alone: bool = False  # the actor has nothing else, so that it is known what killed it
    deaths: int = 0


@dataclass
class _Actor:
    handle: Any
    tasks: deque[tuple[Any, _Task]] = field(default_factory=deque)  # and the references to their results, in order

    @property
    def load(self) -> int:
        return SHARDS_PER_ACTOR if self.tasks and self.tasks[0][1].alone else len(self.tasks)


class Pool:
    """Actors that take shards and lose none: when one dies, another takes over what it had."""

    def __init__(self, actors: int, recipe: Recipe, tell: Callable[[str], None]) -> None:
        """`tell` gets a line when there is no actor for long."""
        import ray

        self._ray = ray
        self._lost = (*(getattr(ray.exceptions, name) for name in _LOST),)
        # Ray would restart an actor so many times; here what it was doing when it died decides.
        self._class: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Segmenter)
        self._recipe, self._tell = recipe, tell
        self._starting: dict[Any, _Actor] = {}  # by the reference to the answer that it is ready
        self._actors: list[_Actor] = []
        self._again: deque[_Task] = deque()
        self._start_deaths = 0
        self.deaths = 0
        for _ in range(actors):
            self._start_actor()

    @property
    def ready(self) -> int:
        """How many actors are there; others are starting."""
        return len(self._actors)

    def prepare(self, shards: Iterator[tuple[NameT, ImageTask]]) -> Iterator[tuple[NameT, Prepared]]:
        """The result of each shard, with the name it came with, in any order.

        No more shards are taken than the actors have room for. An image with which actors die again and again is a
        failure in the result. Raises RayError if actors cannot start.
        """
        with insisting_interrupt() as raise_if_interrupted:
            while True:
                raise_if_interrupted()
                self._hand_out(shards)
                heads = {actor.tasks[0][0]: actor for actor in self._actors if actor.tasks}
                if self._actors and not heads:
                    return
                ready = next(iter(self._ray.wait([*heads, *self._starting], timeout=SILENT_SECONDS)[0]), None)
                if ready is None:
                    if not self._actors:  # a cluster that lost its nodes may get others
                        self._tell("no actor: Ray is starting one, or waits for a node with a free CPU")
                elif ready in self._starting:
                    self._welcome(ready)
                elif job := self._take(heads[ready]):
                    yield job.name, Prepared.joined(job.parts)

    def _hand_out(self, shards: Iterator[tuple[Any, ImageTask]]) -> None:
        while self._actors:
            actor = min(self._actors, key=lambda actor: actor.load)
            if actor.load == SHARDS_PER_ACTOR:
                return
            if not self._again:
                if (following := next(shards, None)) is None:
                    return
                self._again.append(_Task(_Job(*following), following[1]))
            if self._again[0].alone and actor.tasks:
                return
            task = self._again.popleft()
            actor.tasks.append((actor.handle.prepare.remote(task.shard), task))

    def _take(self, actor: _Actor) -> _Job | None:
        """The result of an actor's first task, which is ready; returns the job if that completes it."""
        reference, task = actor.tasks.popleft()
        try:
            task.job.parts[task.first] = self._ray.get(reference)
        except self._lost:
            self.deaths += 1
            self._actors.remove(actor)
            self._ray.kill(actor.handle)  # it may only have been out of reach
            self._start_actor()
            self._blame(task)
            self._again.extendleft(other for _, other in reversed(actor.tasks))
        return task.job if task.job.done else None

    def _blame(self, task: _Task) -> None:
        """Decide what becomes of a task during which an actor died."""
        task.deaths += 1
        if len(task.shard) > 1:
            if task.deaths < SHARD_DEATHS:
                self._again.appendleft(task)
            else:
                rows = range(len(task.shard))
                self._again.extend(_Task(task.job, task.shard.row(row), row, alone=True) for row in rows)
        elif task.deaths < IMAGE_DEATHS:
            task.alone = True
            self._again.append(task)
        else:
            failure = Failure(0, f"{task.deaths} actors died while they prepared it", lasting=False)
            task.job.parts[task.first] = Prepared.failed(self._recipe, (failure,))

    def _start_actor(self) -> None:
        handle = self._class.remote(self._recipe)
        self._starting[handle.__ray_ready__.remote()] = _Actor(handle)

    def _welcome(self, ready: Any) -> None:
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
