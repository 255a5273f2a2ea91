"""The prepared store of a training: prepared if it is missing, and checked."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial

from psys.cluster.processes import kill_when_parent_ends
from psys.data.source_name import CIFAR10, SAMPLE, source_location
from psys.data.store import PREPARED_FROM, PreparedStore
from psys.errors import ERROR, PsysError, say
from psys.temporary import check_temporary_directory
from psys.training.settings import TrainingConfig
from psys.training.signals import stop_signals_recorded

_POLL_SECONDS, _STOP_SECONDS = 0.1, 10.0  # between looks at a program, and for the program to end after SIGINT


class PreparationError(PsysError):
    """The store could not be prepared; `code` is the exit code of `psys prepare`, 130 if it was stopped."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def open_store(config: TrainingConfig) -> PreparedStore:
    """The store to train on, which is prepared first if it is missing.

    Raises PsysError if temporary files cannot be made, if there is nothing to prepare the store from, if it is damaged,
    or if it is that of another source, and PreparationError.
    """
    check_temporary_directory()
    if not config.store.exists():
        _prepare(config)
    store = PreparedStore.open(config.store, config.image_size)
    check_source(config, store)
    return store


def check_source(config: TrainingConfig, store: PreparedStore) -> None:
    """Raises PsysError if the store was chosen by the name of `source`, but was prepared from another one of that name.

    A source that does not exist any more where the store was prepared from may be this one, moved.
    """
    if "store" in config.model_fields_set or config.source is None:
        return
    place = store.manifest.get(PREPARED_FROM)  # an older store does not have it
    if place not in (None, source_location(config.source)) and (place in (SAMPLE, CIFAR10) or os.path.exists(place)):
        raise PsysError(
            f"{config.store} was prepared from {place}, not from {config.source}: "
            f"say --store {config.store} to use it all the same, or give another --store to be prepared"
        )


def run_program(command: list[str]) -> tuple[int, str]:
    """Run a program that ends with this process: its exit code, and the message of its PsysError or "".

    SIGINT, SIGTERM or SIGHUP interrupt the program, which has 10 s to end by itself; the exit code is then 130. What
    else the program writes to standard error is shown when it has ended.
    """
    with tempfile.TemporaryFile() as errors, stop_signals_recorded() as received:
        # In a session of its own: this process passes a terminal's Ctrl-C on.
        end_with_this = partial(kill_when_parent_ends, os.getpid())
        program = subprocess.Popen(command, stderr=errors, start_new_session=True, preexec_fn=end_with_this)
        while program.poll() is None and not received:
            time.sleep(_POLL_SECONDS)
        if received:
            program.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(_STOP_SECONDS)
            program.kill()
        code = program.wait()
        errors.seek(0)
        message = ""
        for line in errors.read().decode(errors="replace").splitlines():
            if line.startswith(ERROR):
                message = line.removeprefix(ERROR)
            else:
                print(line, file=sys.stderr)
    if received:
        return 130, message
    return (code if code >= 0 else 128 - code), message


def _prepare(config: TrainingConfig) -> None:
    if config.source is None:
        raise PsysError(f"no prepared store at {config.store}, and no --source to prepare it from")
    say(f"{config.store} does not exist yet: it is prepared from {config.source} (once)")
    # In a process of its own: training imports neither ray nor cv2.
    command = [sys.executable, "-m", "psys", "prepare", f"--source={config.source}"]
    command += [f"--stores={config.store.parent}", f"--name={config.store.name}"]
    if config.image_size:
        command += [f"--image-size={config.image_size}"]
    code, message = run_program(command)
    if code == 130:
        raise PreparationError(f"stopped while {config.store} was prepared; the same command continues there", code)
    if code:
        raise PreparationError(message or f"`psys prepare` of {config.store} ended with code {code}", code)
