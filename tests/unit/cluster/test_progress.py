import io

import pytest
from rich.console import Console

from psys.cluster import progress
from psys.cluster.progress import ProgressView
from psys.run.status import Status
from tests.support.runs import update


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_log_gets_a_line_every_ten_seconds_that_says_why_workers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    status = Status("sync", epochs=3, workers=2, waiting={"waits for the workers that start together": 1})

    def line_at(now: float) -> str:
        clock.now = now
        out.truncate(out.seek(0))
        view.show(status)
        return out.getvalue().strip()

    with ProgressView(Console(file=out)) as view:
        assert line_at(9.0) == ""
        assert "2 workers · waiting: 1 worker waits for the workers that start together" in line_at(10.0)
        status.add(update(1, seconds=4.0, epochs=1.0))
        assert line_at(11.0) == ""
        assert line_at(20.0).endswith("· 8 s left")
        assert "waits" not in out.getvalue()
        assert "waiting: 1 worker waits for" in line_at(30.0)
        status.waiting = {}
        assert "waiting" not in line_at(40.0)
