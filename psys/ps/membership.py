"""Who has been heard of, and who has been silent for too long."""


class Membership:
    """Last sign of life of each worker. Times are seconds on the caller's monotonic clock."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._heard: dict[str, float] = {}

    def heard(self, worker: str, now: float) -> None:
        """`worker` gave a sign of life."""
        self._heard[worker] = now

    def forget(self, worker: str) -> None:
        """`worker` is gone."""
        self._heard.pop(worker, None)

    def silent(self, now: float) -> list[str]:
        """Workers not heard of for longer than the timeout: to be taken for dead."""
        return [worker for worker, heard in self._heard.items() if now - heard > self._timeout]
