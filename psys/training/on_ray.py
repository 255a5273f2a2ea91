"""A run whose workers, and servers after server 0, are processes on the nodes of a Ray cluster.

Ray reserves the cores and GPUs, chooses nodes, and notices when a node is lost. What dies is started again by the
supervisor, as it is on one machine. The only module of training that imports ray, and only with --ray-address.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from psys.cluster.node_process import NodeProcess, Part, Report
from psys.cluster.supervisor import StartElsewhere
from psys.data.store import PreparedStore
from psys.data.store_copy import packed_store
from psys.errors import PsysError, say
from psys.ray_cluster import joined_cluster
from psys.training.settings import TrainingConfig, is_loopback
from psys.training.signals import stop_signals_recorded
from psys.transport.join_messages import Role

_POLL_SECONDS = 1.0
_LOST = "Ray lost its node or its actor"


class _RayProcess:
    """A RunProcess in an actor."""

    def __init__(self, ray: Any, actor: Any, start: Callable[[Any], Any], packed: Any, log: Path) -> None:
        """`start`: calls the actor's method, with None or the reference to the `packed` store."""
        self._ray, self._actor, self._start, self._packed, self._log = ray, actor, start, packed, log
        self._report = start(None)  # reference to the actor's next report
        self._exitcode: int | None = None

    @property
    def exitcode(self) -> int | None:
        self._take_reports(0.0)
        return self._exitcode

    def join(self, timeout: float | None = None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._exitcode is None:
            left = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
            self._take_reports(max(0.0, left))
            if left <= 0:
                return

    def terminate(self) -> None:
        if self._exitcode is None:
            self._actor.terminate.remote()

    def kill(self) -> None:
        if self._exitcode is None:
            self._end(-signal.SIGKILL)

    def _take_reports(self, seconds: float) -> None:
        if self._exitcode is not None or not self._ray.wait([self._report], timeout=seconds)[0]:
            return
        errors = self._ray.exceptions
        try:
            report = self._ray.get(self._report)
        except errors.ActorUnavailableError:  # it comes back, or Ray will find that its node is lost
            report = Report(None, b"")
        except errors.RayError as error:
            if isinstance(error, errors.RayTaskError) or getattr(error, "actor_init_failed", False):
                report = Report(1, f"{error}\n".encode())  # it could not be started
            else:
                report = Report(-signal.SIGKILL, f"{error}\n{_LOST}\n".encode())
        if report is None:  # the node needs the store
            self._report = self._start(self._packed)
            return
        if report.output:
            with contextlib.suppress(OSError), self._log.open("ab") as log:  # a full disk does not end the run
                log.write(report.output)
        if report.exitcode is None:
            self._report = self._actor.poll.remote()
        else:
            self._end(report.exitcode)

    def _end(self, code: int) -> None:
        self._exitcode = code
        self._ray.kill(self._actor)


class Nodes:
    """Cores and GPUs of a Ray cluster that are reserved for the processes of a run."""

    def __init__(self, ray: Any, group: Any, workers: int, config: TrainingConfig) -> None:
        """`group`: the placement group, with the bundles of the workers before those of the servers."""
        self._ray, self._group, self._workers, self._config = ray, group, workers, config
        self._own = ray.util.get_node_ip_address()
        self.listen: str = self._own if is_loopback(config.listen) else config.listen
        """address of this machine that servers listen on: other nodes do not reach loopback"""

    def starter(self, store: Path, port: int, token: str) -> StartElsewhere:
        """What starts the processes of the run whose server 0 listens at `port` of `listen`."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ray, config = self._ray, self._config
        host = self._own if self.listen in ("0.0.0.0", "::") else self.listen
        packed = ray.put(packed_store(store))
        store, content = store.absolute(), PreparedStore.open(store).content_hash

        def start(role: Role, number: int, log: Path) -> _RayProcess:
            # Any bundle with enough cores would do for Ray, and a worker might find only that of a server left.
            bundle = number if role == "worker" else self._workers + number - 1
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
            needs = _needs(config, role)
            # No restarts by Ray: the supervisor counts deaths, and servers go back to a checkpoint together.
            options = {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": place}
            cls = ray.remote(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), **options)(NodeProcess)
            actor = cls.remote()
            part = Part(role, number, host, port, token, threads_on_node(config))
            return _RayProcess(ray, actor, partial(actor.start.remote, part, store, content), packed, log)

        return start


@contextlib.contextmanager
def reserved_nodes(config: TrainingConfig) -> Iterator[Nodes]:
    """Join the Ray cluster at `ray_address` and reserve what the run needs there, within the block.

    The run's actors end with the block, the cluster does not. Raises PsysError if the cluster does not answer, is too
    small, or has no room for `join_timeout` seconds, and KeyboardInterrupt at SIGINT, SIGTERM or SIGHUP meanwhile.
    """
    assert config.ray_address
    if (workers := config.workers) is None:
        raise PsysError("--ray-address needs --workers: how many of them the cluster is to run")
    with joined_cluster(config.ray_address) as resources:
        import ray

        bundles = [_needs(config, "worker")] * workers + [_needs(config, "server")] * (config.servers - 1)
        needed = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
        where = f"the Ray cluster at {config.ray_address}"
        what = f"the run needs {_in_words(needed)}, for each worker {_in_words(bundles[0])} on one node"
        advice = f"choose fewer --workers ({workers}), --threads or --gpus-per-worker"
        if any(needed[name] > resources.get(name, 0.0) for name in needed):
            raise PsysError(f"{where} has {_in_words(resources)}, {what}: {advice}")
        # On as many nodes as possible: one that is lost takes few processes with it.
        group = ray.util.placement_group(bundles, strategy="SPREAD")
        try:
            if not _ready(group, config.join_timeout, f"{where} to have room: {what}"):
                free = _in_words(ray.available_resources())
                seconds = f"{config.join_timeout:g} s (--join-timeout)"
                raise PsysError(f"{where} had no room for {seconds}: {what}, {free} are free; wait, or {advice}")
            yield Nodes(ray, group, workers, config)
        finally:
            ray.util.remove_placement_group(group)


def threads_on_node(config: TrainingConfig) -> int:
    """Threads that each worker computes with, as many as the cores reserved for it."""
    return config.threads or 1


def _needs(config: TrainingConfig, role: Role) -> dict[str, float]:
    if role == "server":
        return {"CPU": 1.0}
    gpus = {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
    return {"CPU": float(threads_on_node(config)), **gpus}


def _ready(group: Any, seconds: float, what: str) -> bool:
    deadline, told = time.monotonic() + seconds, False
    with stop_signals_recorded() as received:
        while not (ready := group.wait(_POLL_SECONDS)) and time.monotonic() < deadline:
            if received:
                raise KeyboardInterrupt
            if not told:
                say(f"waiting up to {seconds:g} s for {what}")
                told = True
    return bool(ready)


def _in_words(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0.0):g} CPU and {resources.get('GPU', 0.0):g} GPU"
