"""Where the workers' time went: computing, waiting, communicating."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psys.ps.events import UpdateApplied

_PARTS = ("compute", "wait", "communicate")


def worker_times(updates: Iterable[UpdateApplied]) -> dict[str, Any]:
    """Seconds of each part that the gradients applied took, over all workers and under `workers` for each of them.

    A worker waits for the mode, a batch or a slot; the rest of its calls is communication, the servers' updates
    included.
    """
    spent: defaultdict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(_PARTS)))
    for update in updates:
        lists = update.workers, update.compute_seconds, update.wait_seconds, update.call_seconds
        for worker, compute, wait, call in zip(*lists, strict=True):
            spent[worker] += compute, wait, call - wait
    workers = {worker: _named(seconds) for worker, seconds in sorted(spent.items())}
    return {**_named(sum(spent.values(), np.zeros(len(_PARTS)))), "workers": workers}


def shares(times: Mapping[str, Any]) -> str:
    """The parts of `worker_times` as shares of their sum, in words."""
    seconds = [times[part] for part in _PARTS]
    return " / ".join(f"{part / sum(seconds):.0%}" for part in seconds) if any(seconds) else "not measured"


def _named(seconds: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(_PARTS, seconds.round(3).tolist(), strict=True))
