"""What stands before the replicas, in both forms: what it does when routers or replicas fail. No engine."""

from __future__ import annotations

import collections
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from echo import EchoService, echoing

pytestmark = pytest.mark.timeout(200)
DRAIN_S = 4.0
FORMS = (pytest.param("direct", marks=pytest.mark.slow), "plain")


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def service(form: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoService]:
    with echoing(tmp_path_factory.mktemp("echo"), form, drain_s=DRAIN_S) as running:
        yield running


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=100)) as made:
        yield made


def test_it_is_healthy(service: EchoService, client: httpx.Client):
    assert client.get(f"{service.url}/-/healthz").status_code == 200


def test_prompts_stay_where_their_beginning_is(service: EchoService, client: httpx.Client, form: str):
    if form == "plain":
        pytest.skip("Ray Serve's proxy knows no prefixes")
    where = collections.defaultdict(collections.Counter)
    for number in range(6):
        for letter in "abcdefgh":
            where[letter][service.ask(client, letter * 8000 + str(number)).json()["pid"]] += 1
    # ends are told 100 ms late: a replica may look busier than it is
    assert sum(max(pids.values()) for pids in where.values()) >= 43, where
    assert len(set().union(*where.values())) == 2


def test_both_replicas_work(service: EchoService, client: httpx.Client):
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(service.ask, client, str(number), wait_s=0.1) for number in range(64)]
        counts = collections.Counter(answer.result().json()["pid"] for answer in asked)
    assert len(counts) == 2
    assert min(counts.values()) >= 16


@pytest.mark.parametrize("size", [0, 100_000, 3_000_000])
def test_a_body_arrives_whole_whatever_its_size(service: EchoService, client: httpx.Client, size: int):
    answer = service.ask(client, "z" * size)
    assert answer.json()["size"] == len(answer.request.content)


def test_a_stream_comes_as_it_is_made(service: EchoService, client: httpx.Client):
    times = []
    with client.stream("POST", f"{service.url}/v1/x", json={"chunks": 4, "pause_s": 0.3}) as answer:
        times = [time.monotonic() for line in answer.iter_lines() if line]
    assert len(times) == 5
    assert times[-1] - times[0] > 0.8


def test_what_takes_too_long_is_ended(service: EchoService, client: httpx.Client):
    begun = time.monotonic()
    assert service.ask(client, wait_s=30).status_code == 504
    assert time.monotonic() - begun < 20


def test_methods_without_a_body_are_answered(service: EchoService, client: httpx.Client):
    assert client.get(f"{service.url}/v1/models").json()["path"] == "/v1/models"


def test_it_listens_on_this_machine_only(service: EchoService, form: str):
    if form == "plain":
        pytest.skip("HAProxy is what listens everywhere by itself")
    names = ("haproxy",)
    below = psutil.Process(service.process.pid).children(recursive=True)
    proxies = [process for process in below if process.name() in names]
    assert proxies
    listening = {c.laddr.ip for p in proxies for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("status", [500, 503])
def test_what_one_replica_cannot_do_another_does(service: EchoService, client: httpx.Client, form: str, status: int):
    if form == "plain":
        pytest.skip("Ray Serve's proxy asks once")
    broken = service.pids("replica")[0]
    assert {service.ask(client, str(n), status=status, only=broken).status_code for n in range(8)} == {200}
    assert service.ask(client, status=status).status_code == status  # all fail: its own answer


def test_a_slow_client_is_refused_in_openai_s_shape(service: EchoService, form: str):
    if form == "plain":
        pytest.skip("the replica's own limit holds (access.body_timeout_s)")
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
        said = slow.recv(4096)
    assert said.startswith(b"HTTP/1.1 408")
    assert b'"error"' in said


def test_routers_that_hang_or_die_stop_nobody(service: EchoService, client: httpx.Client, form: str):
    if form == "plain":
        pytest.skip("there is no router")
    (router,) = service.pids("router")
    os.kill(router, signal.SIGSTOP)
    begun = time.monotonic()
    assert service.ask(client).status_code == 200
    assert time.monotonic() - begun < 5
    os.kill(router, signal.SIGKILL)
    begun = time.monotonic()
    while time.monotonic() - begun < 5:
        assert service.ask(client).status_code == 200
    assert service.wait_for("router", 1, {router})
    assert service.ask(client).status_code == 200


def test_a_replica_that_dies_loses_no_whole_answer_and_ends_its_streams(
    service: EchoService, client: httpx.Client, form: str
):
    begun = threading.Barrier(9)
    makers = {}

    def stream(number: int) -> str:
        body = {"messages": [{"content": str(number)}], "chunks": 10, "pause_s": 0.3}
        last = "nothing"
        try:
            with client.stream("POST", f"{service.url}/v1/x", json=body) as answer:
                for line in filter(None, answer.iter_lines()):
                    if number not in makers:
                        makers[number] = json.loads(line.removeprefix("data: "))["pid"]
                        begun.wait(30)
                    last = line
        except httpx.RemoteProtocolError:  # not an end that looks like one
            return "cut"
        return last

    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(service.ask, client, str(number), wait_s=1.5) for number in range(24)]
        streams = [pool.submit(stream, number) for number in range(8)]
        begun.wait(30)
        victim = makers[0]
        os.kill(victim, signal.SIGKILL)
        asked += [pool.submit(service.ask, client, str(number)) for number in range(8)]
        statuses = collections.Counter(answer.result().status_code for answer in asked)
        ends = [answer.result() for answer in streams]
    assert statuses == {200: 32}
    for number, end in enumerate(ends):
        # HAProxy can put nothing into a body: the client sees that the connection broke
        lost = "cut" if form == "direct" else "replica_lost"
        assert (lost if makers[number] == victim else "data: [DONE]") in end
    service.wait_for("replica", 2, {victim})
    service.wait_for_answers(2)


@pytest.mark.parametrize("wants", [{}, {"chunks": 2}], ids=["whole", "stream"])
def test_a_replica_that_dies_between_headers_and_body_loses_no_answer(service: EchoService, wants: dict[str, int]):
    victim = service.pids("replica")[0]
    # connections of its own: an older one is still with the HAProxy that knew the replicas of then
    with ThreadPoolExecutor(12) as pool, httpx.Client(timeout=60) as client:
        asked = [pool.submit(service.ask, client, str(number), dies=victim, **wants) for number in range(12)]
        answers = [answer.result() for answer in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert all(f'"pid": {victim},' not in answer.text for answer in answers)
    service.wait_for("replica", 2, {victim})
    service.wait_for_answers(2)


def test_a_replica_that_leaves_cuts_nobody_and_ends_what_takes_too_long(service: EchoService, client: httpx.Client):
    def stream(number: int) -> tuple[int, str]:
        # 5.6 s: longer than a replica that leaves waits, and on a busy machine too within a request's 8 s
        body = {"messages": [{"content": str(number)}], "chunks": 28, "pause_s": 0.2}
        with client.stream("POST", f"{service.url}/v1/x", json=body) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        return json.loads(lines[0])["pid"], lines[-1]

    with ThreadPoolExecutor(30) as pool:
        streams = [pool.submit(stream, number) for number in range(8)]
        asked = [pool.submit(service.ask, client, str(number), wait_s=DRAIN_S - 1) for number in range(12)]
        service.ask(client)
        service.tell("scale 1")
        begun = time.monotonic()
        while time.monotonic() - begun < 6:
            assert service.ask(client).status_code == 200
        assert {answer.result().status_code for answer in asked} == {200}
        ends = [answer.result() for answer in streams]
    stays = service.wait_for("replica", 1, set())
    told = [last for pid, last in ends if pid not in stays]
    assert told
    assert {json.loads(last)["error"]["code"] for last in told} == {"replica_leaving"}
    assert {last for pid, last in ends if pid in stays} <= {"[DONE]"}


def test_connections_that_are_kept_reach_replicas_that_came_since(service: EchoService):
    def makers(client: httpx.Client) -> set[int]:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(service.ask, client, str(number), wait_s=1) for number in range(8)]
            return {answer.result().json()["pid"] for answer in asked}

    service.tell("scale 1")
    service.wait_for("replica", 1, set())
    deadline = time.monotonic() + 20
    while True:
        with httpx.Client(timeout=60) as client:
            if len(makers(client)) > 1:  # one that leaves is reached for a moment more
                assert time.monotonic() < deadline
                continue
            service.tell("scale 2")
            service.wait_for("replica", 2, set())
            service.wait_for_answers(2)
            assert len(makers(client)) == 2
            break


def test_nothing_of_it_outlives_a_driver_that_is_killed(service: EchoService):
    """The last test of a service: it ends it."""
    below = psutil.Process(service.process.pid).children(recursive=True)
    assert len(below) > 6
    service.process.kill()
    assert psutil.wait_procs(below, timeout=15)[1] == []
