"""Workers of a real run read whole versions only, while other workers push: no element is of another version."""

from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import pytest

from psys.ps.optimizer import OptimizerConfig
from psys.ps.schedule import ScheduleConfig
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from tests.support.processes import PROGRAMS, finished, started

BATCHES, WORKERS = 140, 3


@pytest.mark.parametrize("servers", [1, 2])
def test_workers_read_whole_versions(small_store_path: Path, tmp_path: Path, servers: int) -> None:
    """Two workers share memory with the servers, the third worker moves its bytes in chunks."""
    config = RunConfig(
        name="r",
        runs=tmp_path,
        store=small_store_path,
        model="mlp600",  # 2.2 million parameters: the servers apply an update in several blocks
        mode="async",
        epochs=1,
        batch_size=1,
        workers=WORKERS,
        servers=servers,
        remote_servers=servers - 1,
        optimizer=OptimizerConfig(momentum=0, nesterov=False, weight_decay=0, look_ahead=False),
        schedule=ScheduleConfig(kind="constant", learning_rate=1.0),
    )
    run = RunDirectory.create(config)
    with ExitStack() as stack:

        def start(program: str, *arguments: str) -> "Popen[str]":
            return stack.enter_context(started(str(PROGRAMS / program), *arguments, cwd=tmp_path))

        server = start("real_server.py", str(run.path))
        assert server.stdout
        address = server.stdout.readline().split()
        for _ in range(1, servers):
            start("real_server.py", *address)
        workers = [start("version_checking_worker.py", *address, *hidden) for hidden in ([], [], ["hidden"])]
        ended = [finished(worker) for worker in workers]
        assert [done.code for done in ended] == [0] * WORKERS, [done.err for done in ended]
        assert finished(server).out == f"{BATCHES}\n"
    pulls, wrong = zip(*(map(int, done.out.split()) for done in ended), strict=True)
    assert wrong == (0,) * WORKERS
    assert sum(pulls) == BATCHES
    assert min(pulls) > 1  # no worker had the servers for itself
