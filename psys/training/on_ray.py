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


class Demand:
    """Cores and GPUs that a run needs of a cluster: a bundle for each worker, then one for each server but server 0."""

    def __init__(self, config: TrainingConfig) -> None:
        if config.workers is None:
            raise PsysError("--ray-address needs --workers: how many of them the cluster is to run")
        self.threads = config.threads or 1
        """of each worker, which has as many cores"""
        self._workers = config.workers
        gpus = {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
        worker = {"CPU": float(self.threads), **gpus}
        self.bundles = [worker] * config.workers + [{"CPU": 1.0}] * (config.servers - 1)

    def bundle_of(self, role: Role, number: int) -> int:
        """Index of a process's own bundle: in any other one a process could take the place of a larger one."""
        return number if role == "worker" else self._workers + number - 1

    def check(self, cluster: str, resources: Mapping[str, float]) -> None:
        """Raises PsysError if the cluster has fewer `resources`, by name, than the run needs."""
        needed = self._total()
        if any(needed[name] > resources.get(name, 0.0) for name in needed):
            raise PsysError(f"{cluster} has {_in_words(resources)}: {self}; choose fewer")

    def _total(self) -> dict[str, float]:
        return {name: sum(bundle.get(name, 0.0) for bundle in self.bundles) for name in ("CPU", "GPU")}

    def __str__(self) -> str:
        servers = len(self.bundles) - self._workers
        more = f" and {servers} --servers of 1 CPU" if servers else ""
        return f"{self._workers} --workers of {_in_words(self.bundles[0])}{more} need {_in_words(self._total())}"


class Nodes:
    """Cores and GPUs of a Ray cluster that are reserved for the processes of a run."""

    def __init__(self, ray: Any, group: Any, demand: Demand, listen: str) -> None:
        """`group`: the placement group of the demand; `listen`: the setting."""
        self._ray, self._group, self._demand = ray, group, demand
        self._own = ray.util.get_node_ip_address()
        self.listen: str = self._own if is_loopback(listen) else listen
        """address of this machine that servers listen on: other nodes do not reach loopback"""

    def starter(self, store: Path, port: int, token: str) -> StartElsewhere:
        """What starts the processes of the run whose server 0 listens at `port` of `listen`."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ray, demand = self._ray, self._demand
        host = self._own if self.listen in ("0.0.0.0", "::") else self.listen
        packed = ray.put(packed_store(store))
        store, content = store.absolute(), PreparedStore.open(store).content_hash

        def start(role: Role, number: int, log: Path) -> _RayProcess:
            index = demand.bundle_of(role, number)
            bundle = demand.bundles[index]
            # No restarts by Ray: the supervisor counts deaths, and servers go back to a checkpoint together.
            options = {
                "max_restarts": 0,
                "num_cpus": bundle["CPU"],
                "num_gpus": bundle.get("GPU", 0.0),
                "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, index),
            }
            actor = ray.remote(**options)(NodeProcess).remote()
            part = Part(role, number, host, port, token, demand.threads)
            return _RayProcess(ray, actor, partial(actor.start.remote, part, store, content), packed, log)

        return start


@contextlib.contextmanager
def reserved_nodes(config: TrainingConfig) -> Iterator[Nodes]:
    """Join the Ray cluster at `ray_address` and reserve what the run needs there, within the block.

    The run's actors end with the block, the cluster does not. Raises PsysError if the cluster does not answer, is too
    small, or has no room for `join_timeout` seconds, and KeyboardInterrupt at SIGINT, SIGTERM or SIGHUP meanwhile.
    """
    assert config.ray_address
    demand, cluster = Demand(config), f"the Ray cluster at {config.ray_address}"
    with joined_cluster(config.ray_address) as resources:
        import ray

        demand.check(cluster, resources)
        # On as many nodes as possible: one that is lost takes few processes with it.
        group = ray.util.placement_group(demand.bundles, strategy="SPREAD")
        try:
            if not _ready(group, config.join_timeout, cluster):
                free = _in_words(ray.available_resources())
                raise PsysError(
                    f"{cluster} had no room within {config.join_timeout:g} s (--join-timeout): {demand}, each on one "
                    f"node, and {free} are free on all nodes together"
                )
            yield Nodes(ray, group, demand, config.listen)
        finally:
            ray.util.remove_placement_group(group)


def _ready(group: Any, seconds: float, cluster: str) -> bool:
    deadline, told = time.monotonic() + seconds, False
    with stop_signals_recorded() as received:
        while not (ready := group.wait(_POLL_SECONDS)) and time.monotonic() < deadline:
            if received:
                raise KeyboardInterrupt
            if not told:
                say(f"waiting up to {seconds:g} s for {cluster} to have room")
                told = True
    return bool(ready)


def _in_words(resources: Mapping[str, float]) -> str:
    gpus = resources.get("GPU", 0.0)
    return f"{resources.get('CPU', 0.0):g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
