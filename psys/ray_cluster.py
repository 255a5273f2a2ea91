"""The connection to a running Ray cluster, for all that runs on one: images, trials, trainings."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from psys.errors import PsysError, reason_of

_CONNECT_SECONDS = 10.0
_ATTEMPTS = "3"  # to join: something answers, and a wrong token does not become right
_TOKEN_FILE = os.path.expanduser("~/.ray/auth_token")  # where Ray keeps a cluster's token by default

RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray reads these variables on import: send no usage statistics and do not change the actors' visible devices."""


@contextmanager
def joined_cluster(address: str) -> Iterator[dict[str, float]]:
    """Connect this process to the cluster at `address` within the block, and yield all the resources it has by name.

    Raises PsysError if the cluster does not answer or fails, or if Ray is not installed here.
    """
    _check_answer(address)
    os.environ.update(RAY_SETTINGS)
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", _ATTEMPTS)
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or os.path.exists(_TOKEN_FILE):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray does not send its token
    try:
        import ray
    except ModuleNotFoundError:
        raise PsysError(f"ray_address {address} needs Ray, which is not installed here: pip install ray") from None
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError) as error:
            raise PsysError(
                f"cannot join the Ray cluster at {address} ({reason_of(error)}): is this the address of its head, this "
                f"machine one of its nodes, and its token in RAY_AUTH_TOKEN or {_TOKEN_FILE}?"
            ) from None
        yield ray.cluster_resources()
    except ray.exceptions.RayError as error:
        raise PsysError(f"the Ray cluster at {address} failed: {reason_of(error)}") from error
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise PsysError(f"ray_address is '{address}', expected HOST:PORT of a running Ray cluster")
    try:
        # Ray itself would retry for 15 minutes.
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise PsysError(
            f"nothing answers at ray_address {address}, expected HOST:PORT of a Ray cluster ({reason_of(error)})"
        ) from None
