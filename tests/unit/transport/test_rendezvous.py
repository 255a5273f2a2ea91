"""A door on a port of this machine, its host a list of what it was told; who comes to it, properly and otherwise."""

import contextlib
import hashlib
import hmac
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from psys.errors import PsysError
from psys.run.faults import Fault, FaultPlan
from psys.transport import rendezvous as door_module
from psys.transport.rendezvous import Admission, Door, Knock, Lifeline, knock
from tests.support.processes import free_port

TOKEN = "the run's token"
SECONDS = 10.0  # that nothing here takes


class Hall:
    """A `Host` that gives numbers in turn, and again to those who name theirs; `told` is what it heard."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.numbers = 0
        self.heartbeat_timeout = 5.0

    def admit(self, knock: Knock) -> Admission:
        self.told.put(("admit", knock.role, knock.number))
        if knock.role == "server" and knock.number == 99:
            raise PsysError("this run has\n no server 99")
        number = self.numbers if knock.number is None else knock.number
        self.numbers = max(self.numbers, number + 1)
        return Admission(
            incarnation="first",
            settings="{}",
            store_hash="hash",
            heartbeat_timeout=self.heartbeat_timeout,
            number=number,
            servers=("a:1", "b:2"),
            listen="127.0.0.1",
            faults=FaultPlan(faults=(Fault(worker=0, step=1, kind="nan"),)),
        )

    def ready(self, server: int, address: str) -> None:
        self.told.put(("ready", server, address))

    def beat(self, worker: str) -> None:
        self.told.put(("beat", worker))

    def injected(self, worker: str, fault: dict[str, Any]) -> None:
        self.told.put(("injected", worker, fault))

    def leave(self, worker: str) -> None:
        self.told.put(("leave", worker))

    def lost(self, name: str) -> None:
        self.told.put(("lost", name))

    def refused(self, address: str, reason: str) -> None:
        self.told.put(("refused", reason))

    def next(self) -> tuple[Any, ...]:
        return self.told.get(timeout=SECONDS)


class Visitor:
    """A connection to the door by hand."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.lines = self.connection.makefile("rb")
        challenge = self.hear()
        assert challenge is not None
        self.challenge: str = challenge["psys"]

    def proof(self, token: str = TOKEN) -> str:
        return hmac.new(token.encode(), self.challenge.encode(), hashlib.sha256).hexdigest()

    def say(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the door may have heard enough
            self.connection.sendall(data)

    def tell(self, **line: Any) -> None:
        self.say(json.dumps(line).encode() + b"\n")

    def hear(self) -> dict[str, Any] | None:
        """The next line; None at the end of the connection."""
        try:
            line = self.lines.readline()
        except ConnectionError:
            return None
        parsed = json.loads(line) if line else None
        assert parsed is None or isinstance(parsed, dict)
        return parsed

    def hang_up(self) -> list[dict[str, Any]]:
        """Say no more; all that is still to be heard."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        heard = list(iter(self.hear, None))
        self.lines.close()
        self.connection.close()
        return heard


class Rig:
    def __init__(self, listener: socket.socket) -> None:
        self.hall = Hall()
        self.port: int = listener.getsockname()[1]
        self.door = Door(listener, TOKEN, self.hall)

    def knock(self, number: int | None = None) -> Lifeline:
        return knock("127.0.0.1", self.port, TOKEN, "worker", SECONDS, number)

    def admitted(self, number: int | None = None) -> Visitor:
        """One who was let in by hand."""
        visitor = Visitor(self.port)
        visitor.tell(proof=visitor.proof(), role="worker", number=number)
        answer = visitor.hear()
        assert answer is not None
        Admission.model_validate(answer)
        assert self.hall.next() == ("admit", "worker", number)
        return visitor


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(socket.create_server(("127.0.0.1", 0)))
    yield rig
    rig.door.close()


# Those who behave.


def test_who_has_the_token_learns_what_the_run_is(rig: Rig) -> None:
    first, second = rig.knock(), rig.knock()
    assert [line.admission.number for line in (first, second)] == [0, 1]
    assert first.admission.servers == ("a:1", "b:2")
    assert [fault.kind for fault in first.admission.faults.at(0, 1)] == ["nan"]
    assert first.address == "127.0.0.1"
    server = knock("127.0.0.1", rig.port, TOKEN, "server", SECONDS, number=1)
    server.say(ready="10.0.0.1:4000")
    told = [rig.hall.next() for _ in range(4)]
    assert told == [("admit", "worker", None)] * 2 + [("admit", "server", 1), ("ready", 1, "10.0.0.1:4000")]
    for lifeline in (first, second, server):
        lifeline.close()
    assert {rig.hall.next() for _ in range(3)} == {("lost", "worker0"), ("lost", "worker1"), ("lost", "server1")}


@pytest.mark.parametrize("token", ["another", "", TOKEN + " "])
def test_who_has_not_is_refused_and_the_host_is_not_asked(rig: Rig, token: str) -> None:
    with pytest.raises(PsysError, match=rf"127.0.0.1:{rig.port} does not let this worker in: the token is not"):
        knock("127.0.0.1", rig.port, token, "worker", SECONDS)
    what, reason = rig.hall.next()
    assert (what, rig.hall.told.empty()) == ("refused", True)
    assert TOKEN not in reason


def test_a_proof_is_of_this_visits_challenge_only(rig: Rig) -> None:
    overheard = Visitor(rig.port)
    visitor = Visitor(rig.port)
    visitor.tell(proof=overheard.proof(), role="worker")
    (answer,) = visitor.hang_up()
    assert "token" in answer["refused"]
    overheard.hang_up()


@pytest.mark.parametrize("token", ["", "\udcff", "ü"], ids=["none", "not UTF-8", "not ASCII"])
def test_any_token_of_the_environment_will_do(token: str) -> None:
    door = Door(listener := socket.create_server(("127.0.0.1", 0)), token, Hall())
    knock("127.0.0.1", listener.getsockname()[1], token, "worker", SECONDS).close()
    door.close()


def test_the_hosts_own_refusal_comes_as_one_line(rig: Rig) -> None:
    with pytest.raises(PsysError, match="does not let this server in: this run has no server 99"):
        knock("127.0.0.1", rig.port, TOKEN, "server", SECONDS, number=99)
    assert [rig.hall.next()[0] for _ in range(2)] == ["admit", "refused"]


def test_beats_are_echoed(rig: Rig) -> None:
    visitor = rig.admitted()
    for _ in range(3):
        visitor.tell(beat=True)
        assert rig.hall.next() == ("beat", "worker0")
        assert visitor.hear() == {"beat": True}
    visitor.tell(fault={"kind": "slow", "step": 3})
    assert rig.hall.next() == ("injected", "worker0", {"kind": "slow", "step": 3})
    visitor.hang_up()


def test_a_worker_cannot_pass_for_a_server(rig: Rig) -> None:
    visitor = rig.admitted()
    visitor.tell(ready="10.0.0.1:4000")
    visitor.tell(beat=True)
    assert rig.hall.next() == ("beat", "worker0")
    visitor.hang_up()


def test_who_knocks_ever_so_slowly_is_sent_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psys.transport.rendezvous._HANDSHAKE_SECONDS", 0.2)
    told: list[tuple[Any, ...]] = []
    with socket.create_connection(("127.0.0.1", rig.port)) as slow:
        while not told:
            with contextlib.suppress(OSError):
                slow.sendall(b" ")
            with contextlib.suppress(queue.Empty):
                told.append(rig.hall.told.get(timeout=0.02))
    assert told[0][0] == "refused"


def test_a_good_bye_is_no_loss(rig: Rig) -> None:
    lifeline = rig.knock()
    lifeline.say(left=True)
    lifeline.close()
    assert [rig.hall.next() for _ in range(2)] == [("admit", "worker", None), ("leave", "worker0")]
    lifeline.say(left=True)  # into the void
    other = rig.admitted()
    other.tell(left=True)
    assert other.hear() is None
    assert rig.hall.next() == ("leave", "worker1")
    other.hang_up()
    assert rig.hall.told.empty()


def test_an_end_without_a_good_bye_is_a_loss(rig: Rig) -> None:
    rig.admitted().hang_up()
    assert rig.hall.next() == ("lost", "worker0")


def test_an_older_connection_of_the_same_name_may_end(rig: Rig) -> None:
    older = rig.admitted()
    newer = rig.admitted(number=0)
    assert older.hang_up() == []
    newer.tell(beat=True)
    assert newer.hear() == {"beat": True}
    assert rig.hall.next() == ("beat", "worker0")
    newer.hang_up()
    assert rig.hall.next() == ("lost", "worker0")
    assert rig.hall.told.empty()


def test_a_loss_is_told_before_the_same_name_is_let_in_again() -> None:
    """Told afterwards, it would be taken for the loss of the new connection."""
    newcomer_in = threading.Event()
    order: list[str] = []

    class Slow(Hall):
        def lost(self, name: str) -> None:
            newcomer_in.wait(0.5)  # which it must not be: only a door that is wrong ends this early
            order.append("lost")
            super().lost(name)

    hall = Slow()
    door = Door(listener := socket.create_server(("127.0.0.1", 0)), TOKEN, hall)
    port = listener.getsockname()[1]
    older = knock("127.0.0.1", port, TOKEN, "worker", SECONDS)
    assert hall.next()[0] == "admit"
    older.close()
    newer = knock("127.0.0.1", port, TOKEN, "worker", SECONDS, number=0)
    order.append("in")
    newcomer_in.set()
    assert {hall.next()[0] for _ in range(2)} == {"admit", "lost"}
    assert order == ["lost", "in"]
    newer.close()
    door.close()


def test_a_lifeline_beats_until_the_door_is_closed(rig: Rig) -> None:
    rig.hall.heartbeat_timeout = 0.5
    beating, listening = rig.knock(), rig.knock()
    beating.beat()
    listening.listen()
    told = [rig.hall.next() for _ in range(6)]
    assert told.count(("beat", "worker0")) == 4
    assert not beating.lost.is_set()
    assert not listening.lost.is_set()
    rig.door.close()
    assert beating.lost.wait(SECONDS)
    assert listening.lost.wait(SECONDS)
    with pytest.raises(PsysError, match=f"no server at 127.0.0.1:{rig.port}"):
        knock("127.0.0.1", rig.port, TOKEN, "worker", 0.1)
    beating.close()
    listening.close()


# Those who do not.

DEPTHS = (10, 300, 900, 960, 975, 985, 990, 995, 1000, 5000, 100_000)
"""Of nested brackets: Python's own limit of 1000 is met in the parser, or in whoever looks at what it made."""

NOT_A_NUMBER: tuple[Any, ...] = (-1, 2**31, 10**30, 10**400, 1e308, float("inf"), float("nan"), 1.5, "x", "", [], {})
NOT_A_STRING: tuple[Any, ...] = (None, True, 1, 1.5, [], {}, ["worker"], {"a": 1}, "\ud800", "x" * 65, "x" * 100_000)
NO_KNOCK: tuple[Any, ...] = (None, True, 0, 1.5, "psys", [], [{}], {}, {"refused": "x"}, {"psys": "x"}, {"\ud800": 1})


def nested(random: Random) -> bytes:
    depth = random.choice(DEPTHS)
    opened, closed = random.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return opened * depth + random.choice([b"1", b""]) + closed * random.choice([depth, depth, 0])


def garbage(random: Random) -> bytes:
    """What is no line of JSON with an object in it."""
    match random.randrange(6):
        case 0:
            return bytes(random.choices(range(128, 256), k=random.randint(1, 50))) + b"\n"
        case 1:
            return random.randbytes(random.randint(0, 2000)) + b"\xff\n"
        case 2:
            return random.choice(
                [b"\n", b"\0\n", b"{\n", b"GET / HTTP/1.1\r\n\r\n", b"{'beat': True}\n", b"\x16\x03\1\n"]
            )
        case 3:
            return json.dumps(random.choice([None, True, 0, "psys", [], [{}]])).encode() + b"\n"
        case 4:
            return b"[" + nested(random) + b"]\n"
        case _:
            return random.choice([b"9" * 5000, b'{"beat": ' + b"9" * 5000 + b"}", b"NaN", b"x" * (3 << 20)]) + b"\n"


def malformed(random: Random, proof: str) -> bytes:
    """What is no knock, though it may have all that one needs and more, the right proof among it."""
    good: dict[str, Any] = {"proof": proof, "role": "worker", "number": 3, "incarnation": "first"}

    def but(**fields: Any) -> bytes:
        return json.dumps({**good, **fields}).encode() + b"\n"

    whole = but()
    match random.randrange(10):
        case 0 | 1:
            return garbage(random)
        case 2:
            return whole[: random.randrange(len(whole) - 2)] + b"\n"
        case 3:
            return whole[: random.randrange(len(whole))]  # and then it hangs up
        case 4:
            return but(number=random.choice(NOT_A_NUMBER))
        case 5:
            return but(**{random.choice(["proof", "role", "incarnation"]): random.choice(NOT_A_STRING)})
        case 6:
            return but(**{random.choice(["more", "", "psys", "x" * 1000, "\ud800"]): random.choice(NOT_A_STRING)})
        case 7:
            return whole.replace(b'"first"', random.choice([b'"\xff"', b'"\xc3\x28"', b'"\xed\xa0\x80"', b"\xff\xfe"]))
        case 8:
            place = random.choice([b"3", b'"worker"', b'"first"', b'"' + proof.encode() + b'"'])
            return whole.replace(place, nested(random))
        case _:
            return json.dumps(random.choice(NO_KNOCK)).encode() + b"\n"


def test_malformed_knocks_are_refused_and_the_door_stays(rig: Rig) -> None:
    cases, answered = 700, 0
    for seed in range(cases):
        visitor = Visitor(rig.port)
        visitor.say(malformed(Random(seed), visitor.proof()))
        heard = visitor.hang_up()
        assert len(heard) <= 1
        what, reason = rig.hall.next()
        assert what == "refused", f"seed {seed}: {reason}"
        assert 0 < len(reason) <= 500
        for line in heard:
            assert line == {"refused": reason}
            answered += 1
    assert rig.hall.told.empty()
    assert answered > cases * 0.9  # one that has not read all resets the connection, and its answer may go with it
    rig.admitted().hang_up()


def test_malformed_lines_end_only_the_visit_they_come_in(rig: Rig) -> None:
    bystander = rig.admitted()
    for seed in range(150):
        visitor = rig.admitted()
        visitor.say(garbage(Random(seed)))
        assert visitor.hang_up() == []
        assert rig.hall.next() == ("lost", f"worker{seed + 1}")
        bystander.tell(beat=True)
        assert bystander.hear() == {"beat": True}
        assert rig.hall.next() == ("beat", "worker0")
    bystander.hang_up()


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"hello": 1},
        {"beat": 1},
        {"beat": False},
        {"left": "yes"},
        {"ready": 7},
        {"ready": None},
        {"fault": []},
        {"refused": "you"},
    ],
)
def test_what_is_not_understood_after_admission_is_passed_over(rig: Rig, line: dict[str, Any]) -> None:
    visitor = rig.admitted()
    visitor.tell(**line)
    visitor.tell(beat=True)
    assert visitor.hear() == {"beat": True}
    assert rig.hall.next() == ("beat", "worker0")
    visitor.hang_up()


def test_a_crowd_that_says_nothing_keeps_nobody_out(rig: Rig) -> None:
    crowd = [Visitor(rig.port) for _ in range(100)]
    rig.admitted().hang_up()
    assert rig.hall.next() == ("lost", "worker0")
    for visitor in crowd:
        visitor.hang_up()
    assert [rig.hall.next()[0] for _ in crowd] == ["refused"] * len(crowd)


# What is no door.


@contextlib.contextmanager
def stranger(says: Callable[[], bytes], stays: bool = True) -> Iterator[int]:
    """A server that says that to all who come, at once, and then hangs up or waits until they do; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(says())
                while stays and connection.recv(1 << 16):
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS)
        listener.close()


CHALLENGE = b'{"psys": "x"}\n'


@pytest.mark.parametrize(
    ("says", "stays", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", True, "is no psys server: a line of JSON"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", True, "is no psys server: a line of JSON"),
        (b"{}\n", True, "is no psys server: it does not challenge"),
        (b'{"psys": 1}\n', True, "is no psys server: it does not challenge"),
        (b"x" * (2 << 20), True, "is no psys server: a line of JSON"),
        (CHALLENGE + b"HTTP/1.1 400 Bad Request\r\n", True, "is no psys server: a line of JSON"),
        (b"", True, "no server at .*timed out"),
        (b'{"psys": "x"', True, "no server at .*timed out"),
        (b"", False, "no server at .*: is it running"),
        (CHALLENGE, False, "no server at .*: is it running"),
    ],
)
def test_something_else_is_no_server(says: bytes, stays: bool, message: str) -> None:
    with stranger(lambda: says, stays) as port, pytest.raises(PsysError, match=message):
        knock("127.0.0.1", port, TOKEN, "worker", 0.2)


def test_one_that_challenges_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "GATHERING_SECONDS", 0.2)
    with stranger(lambda: CHALLENGE) as port, pytest.raises(PsysError, match=r"no server at .*timed out"):
        knock("127.0.0.1", port, TOKEN, "worker", 0.2)


def test_nothing_at_all_is_no_server() -> None:
    port = free_port()
    with pytest.raises(PsysError, match=f"no server at 127.0.0.1:{port}.*is it running"):
        knock("127.0.0.1", port, TOKEN, "worker", 0.2)


@pytest.mark.parametrize("host", ["", "a" * 300, "a\0b", "..", "no.such.host.invalid", "\ud800", "-"])
def test_what_is_no_host_is_no_server(host: str) -> None:
    with pytest.raises(PsysError, match="no server at"):
        knock(host, free_port(), TOKEN, "worker", 0.2)


@pytest.mark.parametrize("port", [-1, 65536, 10**10])
def test_what_is_no_port_is_no_server(port: int) -> None:
    with pytest.raises(PsysError, match="no server at"):
        knock("127.0.0.1", port, TOKEN, "worker", 0.2)


def test_hostile_answers_are_psys_errors() -> None:
    admission: dict[str, Any] = Hall().admit(Knock(proof="", role="worker")).model_dump(mode="json")
    asked = 0

    def says() -> bytes:
        nonlocal asked
        random, asked = Random(asked), asked + 1
        match random.randrange(5):
            case 0:
                return CHALLENGE + garbage(random)
            case 1:
                return CHALLENGE + nested(random) + b"\n"
            case 2:
                return CHALLENGE + json.dumps({"refused": random.choice([None, [], "no", "\ud800"])}).encode() + b"\n"
            case 3:
                value: Any = random.choice(["x", [], {}, None, 1e400])
                wrong = {random.choice(["number", "heartbeat_timeout"]): value}
                return b'{"psys": "\\ud800"}\n' + json.dumps({**admission, **wrong}).encode() + b"\n"
            case _:
                missing = random.choice([name for name in admission if name != "faults"])
                less = {name: value for name, value in admission.items() if name != missing}
                return CHALLENGE + json.dumps(random.choice([less, {**admission, "more": 1}])).encode() + b"\n"

    with stranger(says) as port:
        for _ in range(200):
            with pytest.raises(PsysError, match=r"is no psys server|does not let this worker in"):
                knock("127.0.0.1", port, TOKEN, "worker", SECONDS)
    assert asked == 200
