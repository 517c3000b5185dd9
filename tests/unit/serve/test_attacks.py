"""Each row of the table in docs/security.md, over a socket."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from small_service import CHAT, NOW, Clock, make_secret, make_service

from conf.schema.access import AccessSpec
from serve.keyring import KeyRing
from serve.keys import Priority, read_keys, revoke_key

DOC = Path(__file__).parents[3] / "docs" / "security.md"
SPEC = AccessSpec(max_body_bytes=65536, body_timeout_s=0.4, max_tokens=1000)
Answer = tuple[int, str]


def rows() -> list[tuple[str, int, str]]:
    table = DOC.read_text().split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [(what, int(status), code) for what, status, code in cells]


class Server:
    """A running service, its keys, and a socket to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = make_secret(path, "team")
        self.batch = make_secret(path, "batch", priority=Priority.batch)
        self.few = make_secret(path, "few", requests_per_min=1)
        self.frugal = make_secret(path, "frugal", tokens_per_min=500)
        self.single = make_secret(path, "single", max_concurrent=1)
        self.expired = make_secret(path, "expired", expires=NOW + timedelta(days=1))
        self.revoked = make_secret(path, "revoked")
        revoke_key(path, "revoked")
        self.app = make_service(SPEC, KeyRing(path), Clock())
        self.port = 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def head(self, *lines: str, method: str = "POST", path: str = CHAT, key: str | None = None) -> bytes:
        first = [f"{method} {path} HTTP/1.1", "Host: service", f"Authorization: Bearer {key or self.key}"]
        return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")

    def send(self, data: bytes) -> Answer:
        with self.connect() as connection:
            connection.sendall(data)
            return answer(connection)

    def raw(self, body: bytes, *lines: str, key: str | None = None, kind: str = "application/json") -> Answer:
        return self.send(self.head(f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines, key=key) + body)

    def post(self, body: dict[str, Any], key: str | None = None) -> Answer:
        return self.raw(json.dumps(body).encode(), key=key)

    def without_key(self, *lines: str, method: str = "GET", path: str = "/v1/models") -> Answer:
        return self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: service", *lines, "", ""]).encode("latin-1"))


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    stream = connection.makefile("rb")
    status = int(stream.readline().split()[1])
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return status, stream.read(length)


def answer(connection: socket.socket) -> Answer:
    status, body = read_answer(connection)
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError):
        return status, "-"
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["code"]


def endless_chunks(server: Server) -> Answer:
    with server.connect() as connection:
        connection.sendall(server.head("Content-Type: application/json", "Transfer-Encoding: chunked"))
        for _ in range(17):  # 68 kB, and no chunk that says it is the last
            connection.sendall(b"1000\r\n" + b"a" * 4096 + b"\r\n")
        return answer(connection)


def stalled(server: Server) -> Answer:
    with server.connect() as connection:
        connection.sendall(server.head("Content-Type: application/json", "Content-Length: 100") + b'{"a":')
        return answer(connection)


def dripping(server: Server) -> Answer:
    """A byte follows as soon as the server has had a hundredth of a second to answer."""
    with server.connect() as connection:
        connection.sendall(server.head("Content-Type: application/json", "Content-Length: 60000"))
        connection.settimeout(0.01)
        while True:
            try:
                if connection.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                connection.sendall(b"a")
        connection.settimeout(20)
        return answer(connection)


def left(server: Server) -> Answer:
    with server.connect() as connection:
        connection.sendall(server.head("Content-Type: application/json", "Content-Length: 100", key=server.single))
        # answered only once the server has taken the first request up
        while server.post({}, key=server.single)[0] != 429:
            pass
    while (got := server.post({}, key=server.single))[0] == 429:
        pass
    return got


def second(server: Server) -> Answer:
    with server.connect() as connection:
        connection.sendall(server.head("Content-Type: application/json", "Content-Length: 100", key=server.single))
        while (got := server.post({}, key=server.single))[0] == 200:
            pass
        return got


def turn(server: Server, body: bytes) -> Answer:
    """The engine must see the turn of the key's class."""
    with server.connect() as connection:
        head = server.head("Content-Type: application/json", f"Content-Length: {len(body)}", key=server.batch)
        connection.sendall(head + body)
        status, text = read_answer(connection)
    assert json.loads(text)["got"]["priority"] == 100
    return status, "-"


def websocket(server: Server) -> Answer:
    lines = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: " + base64.b64encode(b"k" * 16).decode()]
    return server.send(server.head(*lines, "Sec-WebSocket-Version: 13", method="GET", path="/v1/realtime"))


def repeated(server: Server) -> Answer:
    assert server.post({}, key=server.few)[0] == 200
    return server.post({}, key=server.few)


def bearer(server: Server, key: str) -> Answer:
    return server.without_key(f"Authorization: Bearer {key}")


def chunked(server: Server) -> Answer:
    lines = ("Content-Type: application/json", "Content-Length: 2", "Transfer-Encoding: chunked")
    status, _ = server.send(server.head(*lines) + b"2\r\n{}\r\n0\r\n\r\n")
    return status, "-"


JSON_TYPE = "Content-Type: application/json"
ATTACKS: dict[str, Callable[[Server], Answer]] = {
    "no key": lambda s: s.without_key(),
    "an empty key": lambda s: s.without_key("Authorization: Bearer "),
    "a wrong key": lambda s: bearer(s, "sk-" + "a" * 40),
    "a wrong secret with the id of a key": lambda s: bearer(s, s.key[:-4] + "AAA_"),
    "a revoked key": lambda s: bearer(s, s.revoked),
    "an expired key": lambda s: bearer(s, s.expired),
    "a key in the Basic scheme": lambda s: s.without_key(
        "Authorization: Basic " + base64.b64encode(f"a:{s.key}".encode()).decode()
    ),
    "a key in the query": lambda s: s.without_key(path=f"/v1/models?api_key={s.key}&authorization=Bearer%20{s.key}"),
    "a key in another header": lambda s: s.without_key(f"api-key: {s.key}", f"X-Api-Key: {s.key}"),
    "a key of 10 kB": lambda s: bearer(s, s.key + "a" * 10_000),
    "a key that is no ASCII": lambda s: bearer(s, "manta-\xe9\xff-\x80"),
    "the stored hash as the key": lambda s: bearer(s, read_keys(s.path)[0].sha256),
    "a wrong key and a good one": lambda s: s.without_key("Authorization: Bearer x", f"Authorization: Bearer {s.key}"),
    "metrics without a key": lambda s: s.without_key(path="/metrics"),
    "a public path with dots to another": lambda s: s.without_key(path="/health/../v1/models"),
    "a public path with two slashes": lambda s: s.without_key(path="//health"),
    "a public path, encoded dots": lambda s: s.without_key(path="/health/%2e%2e/metrics"),
    "a POST to a public path": lambda s: s.without_key("Content-Length: 0", method="POST", path="/health"),
    "a websocket with a key": websocket,
    "headers of 40 kB": lambda s: s.raw(b"{}", "X-Long: " + "a" * 40_000),
    "3,000 headers": lambda s: s.raw(b"{}", *[f"X-{number}: abcdef" for number in range(3000)]),
    "a content-length beyond the limit": lambda s: s.send(s.head(JSON_TYPE, "Content-Length: 65537")),
    "a content-length of 18 digits": lambda s: s.send(s.head(JSON_TYPE, "Content-Length: " + "9" * 18)),
    "a content-length of 30 digits": lambda s: (s.send(s.head(JSON_TYPE, "Content-Length: " + "9" * 30))[0], "-"),
    "a body in chunks beyond the limit, without end": endless_chunks,
    "a body that stops half-way": stalled,
    "a body a byte at a time": dripping,
    "a client that leaves half-way, then another request": left,
    "a negative content-length": lambda s: (s.send(s.head(JSON_TYPE, "Content-Length: -5") + b"{}")[0], "-"),
    "two content-lengths": lambda s: (
        s.send(s.head(JSON_TYPE, "Content-Length: 2", "Content-Length: 40") + b"{}")[0],
        "-",
    ),
    "a content-length and chunks": chunked,
    "a GET with a body": lambda s: s.send(s.head("Content-Length: 2", method="GET", path="/v1/models") + b"{}"),
    "two content types": lambda s: s.raw(b"{}", "Content-Type: text/plain"),
    "a form": lambda s: s.raw(b"model=m", kind="application/x-www-form-urlencoded"),
    "no content type": lambda s: s.send(s.head("Content-Length: 2") + b"{}"),
    "a compressed body": lambda s: s.raw(gzip.compress(b"{}" + b" " * 10**6), "Content-Encoding: gzip"),
    "JSON cut short": lambda s: s.raw(b'{"model": "m", "messages": ['),
    "JSON with more behind it": lambda s: s.raw(b'{"model": "m"}{"model": "n"}'),
    "JSON that is a list": lambda s: s.raw(b"[{}]"),
    "JSON with NaN": lambda s: s.raw(b'{"temperature": NaN}'),
    "JSON with half a surrogate pair": lambda s: s.raw(b'{"prompt": "\\ud800"}'),
    "JSON with a number out of range": lambda s: s.raw(b'{"temperature": 1e999}'),
    "JSON with a number of 5,000 digits": lambda s: s.raw(b'{"seed": ' + b"9" * 5000 + b"}"),
    "bytes that are no UTF-8": lambda s: s.raw(b'{"prompt": "\xff\xfe"}'),
    "JSON in UTF-16": lambda s: s.raw('{"prompt": "a"}'.encode("utf-16")),
    "JSON 100 levels deep": lambda s: s.raw(b'{"a":' * 100 + b"1" + b"}" * 100),
    "JSON 30,000 levels deep": lambda s: s.raw(b"[" * 30_000),
    "max_tokens of -1": lambda s: s.post({"max_tokens": -1}),
    "max_tokens as text": lambda s: s.post({"max_tokens": "5"}),
    "max_tokens beyond the limit": lambda s: s.post({"max_completion_tokens": 10**9}),
    "n of 100,000": lambda s: s.post({"n": 100_000}),
    "10,000 prompts": lambda s: s.post({"prompt": ["a"] * 10_000}),
    "a model with a path upwards": lambda s: s.post({"model": "../../etc/passwd"}),
    "a model with a NUL": lambda s: s.post({"model": "demo\0.bin"}),
    "a model that is a list": lambda s: s.post({"model": ["demo"]}),
    "a turn before its class": lambda s: turn(s, b'{"priority": -1000}'),
    "a turn before its class, named twice": lambda s: turn(s, b'{"priority": 100, "priority": -1000}'),
    "a turn as text": lambda s: s.post({"priority": "-1"}),
    "one request more than a minute holds": repeated,
    "more tokens than a minute holds": lambda s: s.post({"max_tokens": 501}, key=s.frugal),
    "a second request of a key that may have one": second,
}


@pytest.fixture(scope="module", params=["h11", "httptools"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("keys") / "keys.json")
    config = uvicorn.Config(
        made.app,
        http=request.param,
        log_level="critical",
        lifespan="off",
        ws="websockets-sansio",
        # else h11 itself answers 400 where 16 KiB of headers come in more than one piece, which the network decides
        h11_max_incomplete_event_size=1 << 20,
    )
    running = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    made.port = listening.getsockname()[1]
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    yield made
    running.should_exit = True
    thread.join()
    listening.close()


def test_the_table_has_every_attack():
    assert [what for what, _, _ in rows()] == list(ATTACKS)


@pytest.mark.parametrize("what, status, code", rows(), ids=[what for what, _, _ in rows()])
def test_an_attack_gets_what_the_table_says(what: str, status: int, code: str, server: Server):
    assert ATTACKS[what](server) == (status, code)
    assert server.post({"model": "m"})[0] == 200  # and the service goes on
