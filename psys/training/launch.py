"""The command `psys train`: a training in the role that its settings and torchrun's variables say."""

import os
import sys
from collections.abc import Sequence

from psys.errors import PsysError, exit_with_message, say, shown_once
from psys.run.config import CONFIGS
from psys.training.join import join_run
from psys.training.local import train
from psys.training.settings import TrainingConfig, read_settings
from psys.training.store import PreparationError
from psys.training.torchrun import train_as_rank

_STOPPED = 130  # exit code of a run that was stopped, as of a program that Ctrl-C ended


def launch(config: TrainingConfig) -> bool:
    """Be this process's part of a training. Returns whether nothing is left to train, as far as this process knows.

    Raises PsysError for what the user must mend.
    """
    if (config.role == "all") != (config.join is None):
        raise PsysError("--role worker or --role server, and --join HOST:PORT, go together")
    if config.join is not None:
        return join_run(config)
    of_torchrun = int(os.environ.get("WORLD_SIZE", 1)) > 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if of_torchrun and config.ray_address:
        raise PsysError("--ray-address starts all processes of the run itself: leave out torchrun")
    run = train_as_rank(config) if of_torchrun else train(config)
    return run is None or run.complete


def main(argv: Sequence[str], prog: str) -> None:
    """Launch with settings from the command line over those of the packaged config `sample`.

    Exits with 2 and one line for what the user must mend, 130 if stopped, or the code of a preparation that failed.
    """
    with exit_with_message():
        try:
            with shown_once():
                config = read_settings(argv, prog, CONFIGS / "sample.yaml")
            complete = launch(config)
        except PreparationError as error:
            if error.code == 2:
                raise
            say(str(error))
            sys.exit(error.code)
        if not complete:
            sys.exit(_STOPPED)
