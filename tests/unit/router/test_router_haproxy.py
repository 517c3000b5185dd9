"""What becomes of the configuration that the installed Ray writes: each of our changes must find its place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from conf.schema.serve import ServeJob
from serve.router import haproxy
from serve.router.proxy import free_ports, haproxy_program, set_flags

WRITE = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
folder, port, router, *ports = sys.argv[1], *map(int, sys.argv[2:])
backend = BackendConfig(
    name="http-manta", path_prefix="/", app_name="manta",
    servers=[ServerConfig(f"r{at}", "127.0.0.1", at, f"SERVE_REPLICA::{at}") for at in ports],
    ingress_request_router_servers=[ServerConfig("router", "127.0.0.1", router, "router")],
    fallback_server=ServerConfig("fallback", "127.0.0.1", 8500, "fallback"),
)
http = HTTPOptions(port=port, host="*" if port == 8000 else "127.0.0.1")
state = f"{folder}/state"
config = HAProxyConfig(socket_path=f"{folder}/s", server_state_base=folder, server_state_file=state, http_options=http)
HAProxyApi(config, {"http-manta": backend}, f"{folder}/haproxy.cfg")._generate_config_file_internal()
"""
FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ray's configuration, written by Ray with the flags of the direct form."""
    folder = tmp_path_factory.mktemp("proxy")
    return write(folder, FLAGS, 8000, 30001, 30000)


def write(folder: Path, flags: dict[str, str], *ports: int) -> Path:
    words = [sys.executable, "-c", WRITE, str(folder), *map(str, ports)]
    subprocess.run(words, check=True, env={**os.environ, **flags}, timeout=50)
    return folder / "haproxy.cfg"


@pytest.fixture(scope="module")
def ours(written: Path) -> str:
    return haproxy.amended(written.read_text(), str(written.parent), 7.5)


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in haproxy._EDITS])
def test_each_change_finds_its_place(written: Path, pattern: str):
    assert haproxy.re.search(pattern, written.read_text())


@pytest.mark.parametrize(
    "gone",
    ["listen stats", "prometheus", "mode 666", "router failed", "local0", "not found. Ping", "http-reuse always"],
)
def test_what_should_not_be_there_is_gone(written: Path, ours: str, gone: str):
    assert gone in written.read_text()
    assert gone not in ours


def test_it_listens_at_one_place(ours: str):
    assert [line.split()[1] for line in ours.splitlines() if line.strip().startswith("bind ")] == ["*:8000"]


def test_a_body_may_take_its_time(ours: str):
    assert "wait-for-body time 7500ms if METH_POST" in ours


def test_a_request_without_a_decision_goes_to_any_replica(ours: str):
    rules = [line.strip() for line in ours.splitlines() if line.strip().startswith("use_backend")]
    assert rules[-1] == "use_backend http-manta if is_http-manta"


def test_a_replica_that_is_too_new_for_this_process_is_reached_through_the_next_one(ours: str):
    lines = [line.strip() for line in ours.splitlines()]
    (rule,) = [line for line in lines if "unknown_replica_id" in line and line.startswith("use_")]
    assert rule.startswith("use_backend again if ")
    assert rule.endswith("!{ req.hdr(x-manta-again) -m found }")
    assert lines.index(rule) < lines.index("use_backend http-manta if is_http-manta")
    assert "server self 127.0.0.1:8000" in lines[lines.index("backend again") :]


@pytest.mark.parametrize(("ports", "is_asked"), [((30000,), False), ((30000, 30002), True)])
def test_one_replica_needs_no_choice_but_in_a_process_that_stops(
    tmp_path: Path, ports: tuple[int, ...], is_asked: bool
):
    config = write(tmp_path, FLAGS, 8000, 30001, *ports).read_text()
    lines = [line.strip() for line in haproxy.amended(config, str(tmp_path), 7.5).splitlines()]
    (ask,) = [line for line in lines if "lua.route_via" in line]
    kept = [line for line in lines if "set-var(txn.via_ingress_request_router)" in line]
    assert ask.endswith("{ stopping }") is not is_asked
    assert [line.endswith("!{ stopping }") for line in kept] == [True] * (not is_asked)


def test_each_error_page_is_named_once(ours: str):
    pages = [line for line in ours.splitlines() if line.strip().startswith("errorfile ")]
    assert len(pages) == len(set(pages)) == len(haproxy.ERRORS)


@pytest.mark.parametrize("status", haproxy.ERRORS)
def test_errors_have_openai_s_shape(status: int):
    head, _, body = haproxy.error_page(status).partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert f"content-length: {len(body)}" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_haproxy_understands_it(written: Path):
    program = haproxy_program()
    assert program is not None  # ray[serve] brings it on Linux
    command = [sys.executable, "-I", "-S", haproxy.__file__, program, "7.5", "-c", "-f", str(written)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "listen stats" not in written.read_text()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


@contextmanager
def replica(says: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A replica that is healthy, reads what it is sent, says this much of an answer and hangs up."""
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        with connection:
            raw = connection.recv(65536)
            if b"/-/healthz" in raw:
                connection.sendall(HEAD + b"ok")
            else:
                asked.append(raw)
                connection.sendall(says)

    def listen(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, args=(server,), daemon=True).start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(config: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    program = haproxy_program()
    assert program is not None
    command = [sys.executable, "-I", "-S", haproxy.__file__, program, "7.5", "-db", "-f", str(config), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def proxied(folder: Path, router: int, *ports: int) -> Iterator[tuple[httpx.Client, str, subprocess.Popen[bytes]]]:
    """HAProxy before replicas at these ports, as `manta serve` sets it up, and a client that waits until it listens."""
    (port,) = free_ports(1)
    flags: dict[str, str] = {}
    set_flags(ServeJob(), 4096, folder, flags)
    ours = {name: value for name, value in flags.items() if "HAPROXY_RETR" in name}
    config = write(folder, {**FLAGS, **ours}, port, router, *ports)
    transport = httpx.HTTPTransport(retries=5)
    with proxy(config) as process, httpx.Client(transport=transport, timeout=20) as client:
        yield client, f"http://127.0.0.1:{port}/v1/x", process


@pytest.mark.parametrize("says", [b"", HEAD[:20]], ids=["nothing", "half of the headers"])
def test_a_replica_that_breaks_off_before_its_headers_are_whole_is_not_the_answer(tmp_path: Path, says: bytes):
    # the router names nobody: the replica with the fewest connections is asked
    with (
        replica(says) as (broken, asked),
        replica(HEAD + b"ok") as (whole, _),
        replica(HEAD + b"{}") as (router, _),
        proxied(tmp_path, router, broken, whole) as (client, url, _),
    ):
        statuses = [client.post(url, json={"n": 1}).status_code for _ in range(6)]
    assert asked  # the broken one was tried
    assert statuses == [200] * 6


class Mortal(BaseHTTPRequestHandler):
    """A replica that keeps its connections open."""

    protocol_version = "HTTP/1.1"
    open: ClassVar[list[socket.socket]] = []

    def setup(self) -> None:
        super().setup()
        self.open.append(self.connection)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, format: str, *_: object) -> None:
        """Says nothing."""


def test_the_end_of_a_replica_that_has_answered_before_is_said_to_each_client(tmp_path: Path):
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Mortal) as server,
        ThreadPoolExecutor(32) as many,
        replica(HEAD + b"{}") as (router, _),
        proxied(tmp_path, router, server.server_address[1]) as (client, url, process),
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(_: int) -> httpx.Response:
            return client.post(url, json={"n": 1})

        assert [given.status_code for given in many.map(ask, range(200))] == [200] * 200
        process.send_signal(signal.SIGSTOP)  # it hears of the end when the next requests are there already
        server.shutdown()
        server.server_close()
        for connection in Mortal.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        asked = [many.submit(ask, at) for at in range(32)]
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)
        ends = [given.result() for given in asked]
    assert {given.status_code for given in ends} <= {502, 503}
    assert all(given.json()["error"]["message"] and given.headers["retry-after"] == "1" for given in ends)


def test_a_kept_connection_reaches_a_replica_that_came_with_a_later_process(tmp_path: Path):
    (port,), named = free_ports(1), HEAD.replace(b": 2", b": 99")
    with replica(HEAD + b"ok") as (old, old_asked), replica(HEAD + b"ok") as (new, new_asked):
        says = named + json.dumps({"replica_id": f"SERVE_REPLICA::{new}"}).encode()
        with replica(says) as (router, router_asked), httpx.Client(timeout=20) as client:

            def ask() -> None:
                answer = client.post(f"http://127.0.0.1:{port}/v1/x", json={"n": 1}, headers={"x-request-id": "one"})
                assert answer.status_code == 200

            folders = [tmp_path / name for name in "12"]
            for folder, ports in zip(folders, ([old], [old, new]), strict=True):
                folder.mkdir()
                write(folder, FLAGS, port, router, *ports)
            with proxy(folders[0] / "haproxy.cfg") as first:
                until(lambda: client.post(f"http://127.0.0.1:{port}/v1/x", json={}).status_code == 200)
                for _ in range(3):
                    ask()
                assert (len(old_asked), len(new_asked), router_asked) == (4, 0, [])  # one replica: no router is asked
                sockets = ["-sf", str(first.pid), "-x", str(folders[0] / "s")]
                with proxy(folders[1] / "haproxy.cfg", *sockets) as second:
                    until(lambda: f"Pid: {second.pid}\n" in told(folders[1] / "s"))
                    until(lambda: not told(folders[0] / "s"))  # the first one listens no more
                    before = len(router_asked)
                    ask()
                    assert (len(old_asked), len(new_asked)) == (4, 1)
                    # both processes asked where to, and said which request it is
                    assert len(router_asked) == before + 2
                    assert all(b"x-request-id: one" in asked for asked in router_asked[-2:])


def told(path: Path) -> str:
    """What the process says of itself; nothing where it does not listen."""
    with socket.socket(socket.AF_UNIX) as commands, suppress(OSError):
        commands.connect(str(path))
        commands.sendall(b"show info\n")
        return commands.makefile().read()
    return ""


def until(is_so: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(httpx.TransportError):  # nothing listens yet
            if is_so():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)
