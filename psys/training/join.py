"""A worker or a server that joins a run of another machine, or of this one."""

import os

from psys.cluster.roles import serve_shard
from psys.cluster.worker import LeaveRequested, leave_at_signals, work
from psys.errors import LostServerError, say
from psys.training.settings import TrainingConfig


def join_run(config: TrainingConfig) -> bool:
    """Be a worker or a server of the run at `config.join` until it ends, or SIGTERM or SIGHUP.

    Returns whether the run is complete: not if it was stopped, or this process was. Raises PsysError if there is no run
    at that address for `patience` seconds, the run refuses this process, or the run is lost for longer than its
    settings let this process look for it.
    """
    assert config.join is not None
    host, _, port = config.join.replace("[", "").replace("]", "").rpartition(":")  # IPv6 comes in brackets
    token = config.token()
    try:
        leave_at_signals()
        model = config.model if "model" in config.model_fields_set else None
        if config.role == "server":
            return _serve(host, int(port), token, model, config.patience)
        store = config.store if "store" in config.model_fields_set else None
        threads = config.threads_of_worker(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        return work(host, int(port), threads, token, store, model, config.patience)
    except LeaveRequested:
        return False


def _serve(host: str, port: int, token: str, model: str | None, join_seconds: float) -> bool:
    while True:
        try:
            return serve_shard(host, port, token, join_seconds=join_seconds, model_path=model)
        except LostServerError as error:
            say(f"{error}; this server looks for the run for {error.patience:g} s")
            join_seconds = error.patience
