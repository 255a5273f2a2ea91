"""What a training is started with: the settings of its run, and this process's role in it."""

import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from psys.config import Parser, overlay, parse, validate
from psys.cores import available_cores
from psys.errors import PsysError
from psys.run.config import RunConfig
from psys.run.defaults import reopened, resolved
from psys.run.directory import RunDirectory
from psys.run.network import file_hash

Role = Literal["all", "worker", "server"]
AUTO = Path("auto")
"""--resume auto: the run of that name continues if it has begun, and begins otherwise"""


class TrainingConfig(RunConfig):
    """Train an image classifier with many workers around a parameter server."""

    role: Role = "all"
    """all: servers and workers (of the ranks of torchrun, the first are servers); worker, server: join a run"""
    join: str | None = Field(None, pattern=r"^.+:\d+$")
    """HOST:PORT of the run that a `worker` or `server` joins"""
    resume: Path | None = None
    """directory of a run to continue from its newest checkpoint, with its settings; auto: this run, if it has begun"""
    token_file: Path | None = None
    """file with the token that every process must have to join; by default PSYS_TOKEN of the environment"""
    ray_address: str | None = Field(None, min_length=1)
    """HOST:PORT of a running Ray cluster whose nodes, which have psys, run the workers and all servers but server 0"""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that the Ray cluster reserves for each worker"""

    @model_validator(mode="after")
    def _ray_runs_whole_trainings(self) -> Self:
        if self.ray_address is None:
            if self.gpus_per_worker:
                raise ValueError("'gpus_per_worker' needs 'ray_address': it is what a Ray cluster reserves")
            return self
        if self.role != "all" or self.join is not None:
            raise ValueError("'ray_address' places a whole run on a cluster: leave out 'role' and 'join'")
        if self.remote_servers:
            raise ValueError("'ray_address' places all servers but server 0: 'remote_servers' must be 0")
        if self.remote_workers:
            raise ValueError("'ray_address' places all workers: 'remote_workers' must be 0")
        return self

    def run_config(self, workers: int) -> RunConfig:
        """The settings of the run, with that number of workers and what follows it.

        Raises PsysError if the workers are too few.
        """
        fields = {name: getattr(self, name) for name in RunConfig.model_fields}
        fields["model_hash"] = file_hash(self.model)
        return resolved(validate(RunConfig, {**fields, "workers": workers}, where=f"a run of {workers} workers"))

    def token(self) -> str:
        """The token from the file or the environment; "" if none was given. Raises PsysError for an unusable file."""
        if self.token_file is None:
            return os.environ.get("PSYS_TOKEN", "")
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise PsysError(f"cannot read the token in {self.token_file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise PsysError(f"cannot read the token in {self.token_file}: the file is not text") from None
        if not token:
            raise PsysError(f"{self.token_file} is empty: it should hold the run's token")
        return token

    def threads_of_worker(self, workers_here: int) -> int:
        """Threads of each worker on a machine whose cores `workers_here` workers share."""
        return self.threads or max(1, available_cores() // workers_here)


def read_settings(argv: Sequence[str], prog: str = "launch/ps.py", default_file: Path | None = None) -> TrainingConfig:
    """Settings from flags over a file, and over the run to --resume or else `default_file`. See `parse`."""
    parser = Parser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path)
    resume = parser.parse_known_args(argv)[0].resume
    if resume in (None, AUTO):
        return parse(TrainingConfig, argv, prog, default_file)
    # Of torchrun's ranks the first has the settings, and perhaps the only one that can read the run.
    run = {} if int(os.environ.get("RANK", 0)) else reopened(RunDirectory(resume).config()).model_dump(mode="json")
    return parse(TrainingConfig, argv, prog, base=run)


def over_run(config: TrainingConfig) -> TrainingConfig:
    """`config` with the settings of the run to resume where `config` sets nothing. Raises PsysError as `parse`."""
    assert config.resume
    run = reopened(RunDirectory(config.resume).config()).model_dump()
    return validate(TrainingConfig, overlay(run, config.model_dump(exclude_unset=True)), where="TrainingConfig")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. Raises PsysError if the name cannot be resolved."""
    try:
        return all(ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        raise PsysError(f"there is no host of the name '{host}': give --listen an address of this host") from None
