"""The process that evaluates snapshots while their run trains: python -m psys.run.evaluate_while_training RUN PACE.

It reads versions of snapshots on standard input, one a line, and writes a SnapshotEvaluated as a line of JSON for each;
of the versions that wait the newest comes first. It ends when standard input does: with the server that started it.
PACE is `idle`, to compute only while a core has nothing else to do, and for a small share of the time; or `full`.
"""

import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from psys.cores import available_cores
from psys.errors import PsysError, say
from psys.output import protect_output

_IDLE_SHARE = 0.01
"""of the time of all cores: what the pace `idle` takes. Cores that seem idle are not free: memory is shared"""
_REST_PIECE = 0.5  # seconds
_IMPORT_SECONDS = 2.5  # of computing; the import of torch is by far the most of it


class _Waiting:
    """Versions that are to be evaluated, read from standard input by a thread of its own."""

    def __init__(self) -> None:
        self._versions: list[int] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="read versions", daemon=True).start()

    def newest(self) -> int:
        """Wait for a version; the newest that waits, which waits no longer."""
        with self._changed:
            self._changed.wait_for(lambda: self._versions)
            version = max(self._versions)
            self._versions.remove(version)
            return version

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            with self._changed:
                self._versions.append(int(line))
                self._changed.notify()
        os._exit(0)  # also in the middle of an evaluation: nobody reads its result


def evaluate_snapshots(path: Path, idle: bool) -> None:
    """Evaluate the snapshots of the run in `path` whose versions arrive, until the process ends."""
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for what a library might print
    waiting = _Waiting()
    if idle:
        _compute_when_idle()
        _rest(rest_after(_IMPORT_SECONDS))
    # Imported here: the import of torch takes seconds, which are taken at the same pace.
    import json

    import torch

    from psys.compute.device import choose_device
    from psys.data.store import PreparedStore
    from psys.run.directory import RunDirectory
    from psys.run.evaluator import Evaluator

    torch.set_num_threads(1)
    run = RunDirectory(path)
    config = run.config()
    store = PreparedStore.open(config.store, config.image_size)
    evaluator = Evaluator(run, store, torch.device("cpu") if idle else choose_device(0))
    while evaluator.has_held_out:
        version, before = waiting.newest(), time.process_time()
        try:
            evaluated = evaluator.evaluate(version)
        except PsysError as error:  # the file may be damaged, or removed: the next one may not be
            say(str(error))
        else:
            print(json.dumps(asdict(evaluated)), file=results, flush=True)
        if idle:
            _rest(rest_after(time.process_time() - before))


def rest_after(computed: float) -> float:
    """Seconds of rest after `computed` seconds, so that computing takes the idle share of all cores' time."""
    return computed * max(0.0, 1 / (_IDLE_SHARE * available_cores()) - 1)


def _rest(seconds: float) -> None:
    """Sleep in pieces: a time for which this process is suspended counts as one piece at most."""
    while seconds > 0:
        time.sleep(min(seconds, _REST_PIECE))
        seconds -= _REST_PIECE


def _compute_when_idle() -> None:
    os.nice(19)
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    protect_output()
    evaluate_snapshots(Path(sys.argv[1]), idle=sys.argv[2] == "idle")
