"""Where the workers' time went: computing, waiting, communicating."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psys.ps.events import PushRefused, RunEvent, UpdateApplied

_PARTS = ("compute", "wait", "communicate")


def worker_times(events: Iterable[RunEvent]) -> dict[str, Any]:
    """Seconds of each part that all gradients pushed took, over all workers and under `workers` for each of them.

    A worker waits for the mode, a batch or a slot; the rest of its calls is communication, the servers' updates
    included. A push that is refused as a duplicate may be one that counts already.
    """
    spent: defaultdict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(_PARTS)))
    for event in events:
        match event:
            case UpdateApplied():
                lists = event.workers, event.compute_seconds, event.wait_seconds, event.call_seconds
                for worker, compute, wait, call in zip(*lists, strict=True):
                    spent[worker] += compute, wait, call - wait
            case PushRefused(receipt="expired" | "damaged" | "late", lease=lease):
                wait = event.wait_seconds
                spent[lease.worker] += event.compute_seconds, wait, event.call_seconds - wait
    workers = {worker: _named(seconds) for worker, seconds in sorted(spent.items())}
    return {**_named(sum(spent.values(), np.zeros(len(_PARTS)))), "workers": workers}


def shares(times: Mapping[str, Any]) -> str:
    """The parts of `worker_times` as shares of their sum, in words."""
    seconds = [times[part] for part in _PARTS]
    return " / ".join(f"{part / sum(seconds):.0%}" for part in seconds) if any(seconds) else "not measured"


def _named(seconds: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(_PARTS, seconds.round(3).tolist(), strict=True))
