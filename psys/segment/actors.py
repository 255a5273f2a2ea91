"""Ray actors that prepare shards, on this machine or on a running cluster; the only file that imports ray."""

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import cv2

from psys.data.store import Layout
from psys.errors import PsysError
from psys.segment.quality import GateConfig
from psys.segment.shard import Prepared, Shard, prepare_shard

OBJECT_STORE_BYTES = 256 * 2**20  # a few shards in flight
CONNECT_SECONDS = 10.0
SHARDS_PER_ACTOR = 4  # waiting, running or done but not yet taken


class Segmenter:
    """One core's share of the work."""

    def __init__(self, size: int, gate: GateConfig, layout: Layout) -> None:
        cv2.setNumThreads(1)
        self._size, self._gate, self._layout = size, gate, layout

    def prepare(self, shard: Shard) -> Prepared:
        return prepare_shard(shard, self._size, self._gate, self._layout)


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
    import ray

    try:
        if address is None:
            actors = actors or os.cpu_count() or 1
            _start_local(ray, actors)
        else:
            cpus = _join(ray, address)
            actors = actors or cpus
            if actors > cpus:
                raise PsysError(f"the Ray cluster at {address} has {cpus} CPUs: too few for {actors} actors")
        yield actors
    except ray.exceptions.RayError as error:
        raise PsysError(f"a segmentation actor failed: {' '.join(str(error).split())}") from error
    finally:
        ray.shutdown()


def _start_local(ray: Any, actors: int) -> None:
    ray.init(
        address="local",
        num_cpus=actors,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
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


def prepare_shards(
    shards: Iterable[Shard], actors: int, size: int, gate: GateConfig, layout: Layout
) -> Iterator[Prepared]:
    """Results in the order of the shards, whichever actor is faster; a bounded number of shards is in flight."""
    import ray

    # A lost node costs its shards in flight a second run elsewhere, not the preparation.
    actor_class: Any = ray.remote(num_cpus=1, max_restarts=2, max_task_retries=2)(Segmenter)
    idle = [actor_class.remote(size, gate, layout) for _ in range(actors)]
    running: dict[Any, tuple[int, Any]] = {}
    done: dict[int, Prepared] = {}
    queue = enumerate(shards)
    following = next(queue, None)
    taken = 0
    while following or running:
        while idle and following and following[0] < taken + SHARDS_PER_ACTOR * actors:
            actor = idle.pop()
            running[actor.prepare.remote(following[1])] = (following[0], actor)
            following = next(queue, None)
        (ready,), _ = ray.wait(list(running))
        index, actor = running.pop(ready)
        idle.append(actor)
        done[index] = ray.get(ready)
        while taken in done:
            yield done.pop(taken)
            taken += 1
