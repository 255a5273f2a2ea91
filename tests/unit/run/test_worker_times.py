"""The division of the workers' time."""

from typing import Any

from psys.ps.events import PushRefused
from psys.ps.messages import Lease
from psys.run.worker_times import shares, worker_times
from tests.support.runs import update


def test_times_are_summed_over_all_workers_and_by_worker() -> None:
    both = {"workers": ("worker0", "worker1"), "batches": (1, 0), "attempts": (0, 0), "staleness": (0, 0)}
    times = {"compute_seconds": (1.0, 2.0), "wait_seconds": (0.5, 0.0), "call_seconds": (1.5, 1.0)}
    found = worker_times([update(1), update(2, **both, **times), update(3)])  # 1 and 3: worker1, 0.5 s and 0.25 s
    assert found == {
        **{"compute": 4.0, "wait": 0.75, "communicate": 2.25},
        "workers": {
            "worker0": {"compute": 1.0, "wait": 0.5, "communicate": 1.0},
            "worker1": {"compute": 3.0, "wait": 0.25, "communicate": 1.25},
        },
    }
    assert shares(found) == "57% / 11% / 32%"


def test_refused_gradients_count_but_not_repeated_ones() -> None:
    lease = Lease(3, 0, "worker2", 1, 0)
    times: dict[str, Any] = {"compute_seconds": 2.0, "wait_seconds": 0.25, "call_seconds": 1.0}
    late, again = (PushRefused(receipt=receipt, lease=lease, seconds=1.0, **times) for receipt in ("late", "duplicate"))
    assert worker_times([late, again])["workers"] == {"worker2": {"compute": 2.0, "wait": 0.25, "communicate": 0.75}}


def test_run_without_times_is_called_not_measured() -> None:
    nothing = {"compute_seconds": (0.0,), "wait_seconds": (0.0,), "call_seconds": (0.0,)}
    assert shares(worker_times([update(1, **nothing)])) == "not measured"
