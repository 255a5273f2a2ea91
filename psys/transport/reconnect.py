"""A worker's part in a run: it comes through the door, calls the servers, and finds them again when they were away."""

import contextlib
import json
import sys
import threading
import time

from psys.config import validate
from psys.errors import PsysError
from psys.ps.coordinator import Grant
from psys.ps.ledger import Lease
from psys.run.config import RunConfig
from psys.transport import torch_rpc
from psys.transport.protocol import Push
from psys.transport.rendezvous import Admission, Lifeline, knock
from psys.transport.shared_memory import Lane

_ARRIVAL_SECONDS = 30.0  # how long a newcomer looks for the run
_RETRY_SECONDS = 0.5


class RestartedError(Exception):
    """Another server 0 is there, resumed from a checkpoint: it knows nothing of the leases held. Ask anew."""


class Session:
    """Calls that outlive a broken network and a restarted server; from one thread at a time, but for `close`.

    Raises PsysError when there is no run at host:port, the token is not the run's, or servers stay away for longer
    than the run's `patience`.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        self._host, self._port, self._token = host, port, token
        self._lane: Lane | None = None
        self._dropped: Lease | None = None
        self._closed = False
        self._lock = threading.Lock()  # of lifeline and client: one thread may close while another recovers
        self._enter(knock(host, port, token, "worker", _ARRIVAL_SECONDS))
        where = f"settings of the server at {host}:{port}"
        self.config = validate(RunConfig, json.loads(self.admission.settings), where=where)

    @property
    def admission(self) -> Admission:
        """What the door said last."""
        return self._lifeline.admission

    def attach(self, lane: Lane) -> None:
        """Make `lane` the memory of this worker's gradients and parameters, and give signs of life from now on."""
        self._lane = lane
        self._lifeline.beat()
        try:
            self._client.attach(lane)
        except RuntimeError as error:
            with contextlib.suppress(RestartedError):  # nothing is leased yet
                self._recover(error)

    def push_pull(self, push: Push | None, holding: tuple[Lease, ...] = ()) -> Grant:
        """Hand in the gradient in the lease's slot and wait for work; its parameters then stand in its slot.

        Repeated, naming the same lease, until it is answered: nothing is applied twice. Raises RestartedError.
        """
        while True:
            try:
                if self._lifeline.lost.is_set():
                    self._recover(None)
                grant = self._client.push_pull(push, holding)
                if push is None or push.lease != self._dropped:
                    return grant
                self._dropped = None
            except RuntimeError as error:
                self._recover(error)

    def drop_reply(self, lease: Lease) -> None:
        """On purpose: the answer to its push is treated as lost on its way."""
        self._dropped = lease

    def tell(self, fault: dict[str, object]) -> None:
        """The server shall know that this was done on purpose."""
        self._lifeline.say(fault=fault)

    def close(self) -> None:
        """Say good-bye. A call under way in another thread fails."""
        with self._lock:
            self._closed = True
            self._lifeline.say(left=True)
            self._hang_up()

    def _recover(self, error: RuntimeError | None) -> None:
        if error is not None and (self._closed or not torch_rpc.is_connection_error(error)):
            raise error
        reason = str(error).splitlines()[0] if error else "no sign of life"
        print(f"psys: lost the servers ({reason}): looking for them", file=sys.stderr, flush=True)
        before = self.admission
        deadline = time.monotonic() + self.config.patience
        while True:
            with self._lock:
                if self._closed:
                    raise PsysError("this worker has left the run")
                self._hang_up()
            try:
                left = max(_RETRY_SECONDS, deadline - time.monotonic())
                self._enter(
                    knock(self._host, self._port, self._token, "worker", left, before.number, before.incarnation)
                )
                same = self.admission.settings == before.settings
                if self._lane and same:  # of other settings it would not have the size
                    self._lifeline.beat()
                    self._client.attach(self._lane)
                break
            except (PsysError, RuntimeError) as again:
                if time.monotonic() > deadline:
                    raise PsysError(f"lost the servers of the run at {self._host}:{self._port}: {again}") from None
                time.sleep(_RETRY_SECONDS)
        if not same:
            raise PsysError("the run came back with other settings: start this worker again")
        print("psys: found them again", file=sys.stderr, flush=True)
        if self.admission.incarnation != before.incarnation:
            raise RestartedError

    def _enter(self, lifeline: Lifeline) -> None:
        with self._lock:
            self._lifeline = lifeline
            try:
                if self._closed:
                    lifeline.say(left=True)
                    raise PsysError("this worker has left the run")
                admission = lifeline.admission
                # An answer may wait for as long as a silent worker is waited for; only then is it late itself.
                patience = 2 * admission.heartbeat_timeout
                self._client = torch_rpc.Client(admission.number, lifeline.address, admission.servers, patience)
            except BaseException:
                lifeline.close()
                raise

    def _hang_up(self) -> None:
        self._lifeline.close()
        torch_rpc.close()
