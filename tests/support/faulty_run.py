"""A run in which workers and servers fail at random."""

from collections import Counter
from random import Random

from psys.simulate.in_process import InProcessRun, Saved

WEIGHTS = {
    "step": 30,
    "damage": 1,
    "repeat": 3,
    "kill": 2,
    "join": 1,
    "silence": 1,
    "disconnect": 1,
    "reconnect": 1,
    "save": 1,
    "restart": 1,
}
"""How often each action is drawn, relative to the others."""


class FaultyRun:
    """Drives a run to its end: what happens next is drawn at random."""

    def __init__(self, run: InProcessRun, seed: int, restarts: int = 1) -> None:
        self.run, self._random = run, Random(seed)
        self.faults: Counter[str] = Counter()
        self._left = {"damage": 2, "kill": 4, "join": 4, "silence": 3, "disconnect": 3, "restart": restarts}
        self._lost: set[str] = set()  # workers taken for dead that do not know it
        self._checkpoint: Saved | None = None

    def drive(self) -> None:
        """Until the run has ended."""
        for _ in range(self._random.randint(1, self.run.awaited + 1)):
            self.run.join()
        while self.run.end is None:
            action = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            if self._left.get(action, 1):
                done = getattr(self, f"_{action}")()
                if done and action in self._left:
                    self._left[action] -= 1
                self.faults[action] += bool(done)
            self._free_workers()
            self.run.tick()

    def _choose(self, ready: bool | None = None) -> str | None:
        found = [name for name, worker in self.run.workers.items() if ready is None or worker.ready == ready]
        return self._random.choice(found) if found else None

    def _step(self, damaged: bool = False) -> bool:
        name = self._choose(ready=True)
        if name:
            self._lost.discard(name)
            self.run.step(name, damaged)
        return name is not None

    def _damage(self) -> bool:
        return self._step(damaged=True)

    def _repeat(self) -> bool:
        """The reply was lost, or did not come in time."""
        name = self._choose()
        if name is None or self.run.workers[name].call is None:
            return False
        self._lost.discard(name)
        self.run.repeat_call(name)
        return True

    def _kill(self) -> bool:
        name = self._choose()
        if name:
            self.run.kill(name)
            self._lost.discard(name)
            if self._random.random() < 0.7:
                self.run.join()
        return name is not None

    def _join(self) -> bool:
        self.run.join()
        return True

    def _silence(self) -> bool:
        """A worker stands still for longer than the heartbeat timeout."""
        name = self._choose()
        if name:
            self._pass_time(1.01 * self.run.config.heartbeat_timeout, {name})
        return name is not None

    def _disconnect(self) -> bool:
        name = self._choose()
        if name:
            self.run.disconnect(name)
            self._lost.add(name)
        return name is not None

    def _reconnect(self) -> bool:
        name = self._choose()
        if name:
            self._lost.discard(name)
            self.run.reconnect(name)
        return name is not None

    def _save(self) -> bool:
        self._checkpoint = self.run.checkpoint()
        return True

    def _restart(self) -> bool:
        self._lost.clear()
        self.run.restart(self._checkpoint)
        return True

    def _pass_time(self, seconds: float, silent: set[str]) -> None:
        self.run.now += seconds
        self._lost |= silent
        for name in self.run.workers.keys() - self._lost:
            self.run.heartbeat(name)
        self.run.tick()

    def _free_workers(self) -> None:
        """If all workers wait: only the start of the run, or workers that were taken for dead, may be the reason."""
        run = self.run
        if run.end or run.ready():
            return
        if not run.workers:
            run.join()
        elif self._lost:
            for name in sorted(self._lost):
                run.reconnect(name)
            self._lost.clear()
        else:
            assert {wait.name for wait in run.waiting().values()} == {"START"}
            self._pass_time(1.01 * run.config.start_timeout, set())
            assert run.ready()
