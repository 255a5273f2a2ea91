"""When a process that died is started again."""

from psys.run.config import RestartConfig


class RestartPolicy:
    """Decides about one process, or about several that are restarted together, from how it died and how long it lived.

    The first restart is at once, each further one in a row after a longer pause.
    """

    def __init__(self, config: RestartConfig) -> None:
        self._config = config
        self._failures = self._kills = 0

    def pause_after(self, code: int, lived: float) -> float | None:
        """Seconds until the restart of a process that died after `lived` seconds; None: it is not started again.

        `code`: positive, the exit code of a failure; negative, minus the number of the signal that killed the process.
        """
        config = self._config
        if lived > config.stable_after:
            self._failures = self._kills = 0
        before = self._failures + self._kills
        self._failures += code > 0
        self._kills += code < 0
        if self._failures > config.failures or self._kills > config.kills:
            return None
        return min(config.first_pause * 2 ** (before - 1), config.longest_pause) if before else 0.0
