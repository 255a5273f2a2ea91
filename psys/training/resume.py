"""Continuing a run from its newest checkpoint: what must be as it was, and what may change."""

from psys.errors import PsysError, say
from psys.run.config import RunConfig
from psys.run.directory import RunDirectory
from psys.run.events import EventLog

# The settings that do not say what is computed.
_MAY_CHANGE = {
    *("name", "runs", "store", "source", "servers", "remote_servers", "workers", "threads", "faults", "listen", "port"),
    *("heartbeat_timeout", "patience", "start_timeout", "join_timeout", "leave_timeout", "restarts"),
    *("checkpoint_every", "keep_checkpoints"),
}


def resume(run: RunDirectory, settings: RunConfig) -> None:
    """Make `settings` those of the run, which continues with them from its newest checkpoint.

    Raises PsysError if the run is going on or complete, if a setting that may not change differs, or if the newest
    checkpoint is damaged.
    """
    before = run.config()
    EventLog(run.events).close()  # raises if the run is going on
    if run.complete:
        raise PsysError(f"{run.path} is complete and evaluated: there is nothing to resume")
    changed = [
        name
        for name in RunConfig.model_fields
        if name not in _MAY_CHANGE and getattr(before, name) != getattr(settings, name)
    ]
    if changed:
        raise PsysError(f"cannot resume {run.path} with another {', '.join(changed)}: start a new run for that")
    newest, refused = run.checkpoints(settings.keep_checkpoints).newest()
    if refused:
        advice = f"remove it to resume from {newest.path}" if newest else "there is no undamaged one before it"
        raise PsysError(f"{refused[0]}; {advice}")
    run.update(settings)
    say(f"{run.path} continues from version {newest.metadata.version if newest else 0}")
