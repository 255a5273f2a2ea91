"""Numbers and addresses of the processes that join a run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from psys.errors import PsysError
from psys.run.config import RunConfig
from psys.transport.join_messages import JoinRequest
from psys.transport.registration import Registration
from tests.support.rendezvous import SECONDS


def registration(
    servers: int = 1, remote_servers: int = 0, workers_named: int = 0, timeout: float = SECONDS
) -> Registration:
    config = RunConfig(servers=servers, remote_servers=remote_servers, join_timeout=timeout)
    return Registration(config, "hash", 10, (32, 32), "127.0.0.1", workers_named)


def never_stopped() -> bool:
    return False


def server(number: int | None = None) -> JoinRequest:
    return JoinRequest(proof="", role="server", number=number)


def worker(number: int | None = None, incarnation: str = "") -> JoinRequest:
    return JoinRequest(proof="", role="worker", number=number, incarnation=incarnation)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def test_the_response_holds_what_a_process_needs_to_take_part() -> None:
    of_run = registration()
    of_run.server_ready(0, "a:1")
    response = of_run.admit(worker())
    assert (response.store_hash, response.classes, response.image_size) == ("hash", 10, (32, 32))
    assert (response.heartbeat_timeout, response.join_timeout) == (15, SECONDS)
    assert RunConfig.model_validate_json(response.settings) == RunConfig(join_timeout=SECONDS)
    assert (response.incarnation, response.servers) == (of_run.incarnation, ("a:1",))


def test_workers_are_numbered_in_turn_and_keep_their_numbers() -> None:
    of_run = registration()
    of_run.server_ready(0, "a:1")
    assert [of_run.admit(worker()).number for _ in range(3)] == [0, 1, 2]
    assert of_run.admit(worker(1, of_run.incarnation)).number == 1
    assert of_run.workers_named == 3


def test_a_worker_of_another_incarnation_gets_a_new_number() -> None:
    of_run = registration(workers_named=3)
    of_run.server_ready(0, "a:1")
    assert of_run.admit(worker(1, "another")).number == 3
    assert of_run.admit(worker(1)).number == 4
    assert of_run.admit(worker(99, of_run.incarnation)).number == 5  # never assigned


def test_a_worker_is_admitted_once_all_servers_are_ready(threads: ThreadPoolExecutor) -> None:
    of_run = registration(servers=3)
    for number in (2, 1):
        of_run.admit(server(number))
    admitted = threads.submit(of_run.admit, worker())
    for number, address in ((2, "c:3"), (1, "b:2"), (0, "a:1")):
        assert not admitted.done()
        of_run.server_ready(number, address)
    assert admitted.result(SECONDS).servers == ("a:1", "b:2", "c:3")


def test_other_servers_waits_for_their_addresses(threads: ThreadPoolExecutor) -> None:
    of_run = registration(servers=3)
    addresses = threads.submit(of_run.other_servers, never_stopped)
    for number, address in ((2, "c:3"), (1, "b:2")):
        assert not addresses.done()
        of_run.server_ready(number, address)
    assert addresses.result(SECONDS) == ("b:2", "c:3")


def test_wait_for_other_servers_ends_when_the_run_is_stopped() -> None:
    of_run = registration(servers=2, remote_servers=1)
    assert of_run.other_servers(stopped=lambda: True) is None
    of_run.server_ready(of_run.admit(server()).number, "b:2")
    assert of_run.server_left(1)  # as one that the run has not used yet


def test_servers_without_a_number_get_the_last_numbers() -> None:
    of_run = registration(servers=5, remote_servers=3)
    assert [of_run.admit(server()).number for _ in range(2)] == [2, 3]
    assert of_run.admit(server(1)).number == 1
    assert of_run.admit(server()).number == 4
    with pytest.raises(PsysError, match=r"all 3 places for remote servers .* are taken"):
        of_run.admit(server())


def test_a_run_without_remote_servers_has_no_place_for_one() -> None:
    with pytest.raises(PsysError, match=r"all 0 places for remote servers .* are taken"):
        registration(servers=2).admit(server())


@pytest.mark.parametrize("number", [0, 2, 3, 99])
def test_a_number_that_is_not_of_a_server_started_by_the_run_is_refused(number: int) -> None:
    with pytest.raises(PsysError, match=f"starts servers 0 to 1 itself, server {number} is none of them"):
        registration(servers=3, remote_servers=1).admit(server(number))


def test_a_number_is_given_to_one_server_at_a_time() -> None:
    of_run = registration(servers=3)
    of_run.admit(server(1))
    with pytest.raises(PsysError, match="server 1 of this run has joined already"):
        of_run.admit(server(1))


def test_the_number_and_the_address_of_a_server_that_left_are_free_again(threads: ThreadPoolExecutor) -> None:
    of_run = registration(servers=3, remote_servers=2)
    for address in ("b:2", "c:3"):
        of_run.server_ready(of_run.admit(server()).number, address)
    assert of_run.server_left(1)
    addresses = threads.submit(of_run.other_servers, never_stopped)
    assert of_run.admit(server()).number == 1
    assert not addresses.done()
    of_run.server_ready(1, "d:4")
    assert addresses.result(SECONDS) == ("d:4", "c:3")


def test_a_server_that_leaves_a_run_under_way_cannot_be_replaced() -> None:
    of_run = registration(servers=2, remote_servers=1)
    of_run.server_ready(of_run.admit(server()).number, "b:2")
    assert of_run.other_servers(never_stopped) == ("b:2",)
    assert not of_run.server_left(1)
    with pytest.raises(PsysError, match="are taken"):
        of_run.admit(server())


def test_missing_remote_servers_are_counted_with_how_to_start_them() -> None:
    of_run = registration(servers=4, remote_servers=2, timeout=0.01)
    of_run.server_ready(1, "b:2")
    message = r"2 of the 4 servers of this run did not join within 0.01 s: start 2 with --role server --join HOST:PORT"
    with pytest.raises(PsysError, match=message):
        of_run.other_servers(never_stopped)
    with pytest.raises(PsysError, match=message):
        of_run.admit(worker())


def test_missing_servers_that_the_run_starts_itself_are_counted() -> None:
    of_run = registration(servers=2, timeout=0.01)
    with pytest.raises(PsysError, match=r"1 of the 2 servers .*: see the messages of the servers"):
        of_run.other_servers(never_stopped)
    of_run.server_ready(1, "b:2")
    with pytest.raises(PsysError, match="server 0 of this run did not join"):
        of_run.admit(worker())
