"""A service with all of its layers, keys to it, and ways to send it over a socket what no client of HTTP would."""

from __future__ import annotations

import base64
import json
import re
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

from small_service import CHAT, NOW, Clock, make_secret, make_stack

from conf.schema.access import AccessSpec
from serve.keyring import KeyRing
from serve.keys import Priority, revoke_key

SPEC = AccessSpec(max_body_bytes=65536, body_timeout_s=0.4, max_tokens=1000)
TIMEOUT_S = 600.0
JSON_TYPE = "Content-Type: application/json"
Answer = tuple[int, str]


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
        self.app = make_stack(SPEC, KeyRing(path), Clock(), TIMEOUT_S)
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

    def post(self, body: dict[str, Any], *lines: str, key: str | None = None) -> Answer:
        return self.raw(json.dumps(body).encode(), *lines, key=key)

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


def headers_of(server: Server, *lines: str) -> tuple[int, list[tuple[str, str]]]:
    """A request's status, and its answer's headers in lower case."""
    with server.connect() as connection:
        connection.sendall(server.head(JSON_TYPE, "Content-Length: 2", *lines) + b"{}")
        first, *rest = iter(connection.makefile("rb").readline, b"\r\n")
    pairs = [line.decode("latin-1").strip().lower().partition(":") for line in rest]
    return int(first.split()[1]), [(name, value.strip()) for name, _, value in pairs]


def unheard(server: Server, line: str) -> Answer:
    """The request is answered, and the header has reached nobody."""
    status, headers = headers_of(server, line)
    assert line.partition(":")[0].lower() not in dict(headers)["x-got"].split(",")
    return status, "-"


def named(server: Server, *lines: str) -> Answer:
    """The answer has an id that is sane, once, and not the client's."""
    status, headers = headers_of(server, *lines)
    (made,) = [value for name, value in headers if name == "x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    return status, "-"


def smuggled(server: Server) -> Answer:
    """What follows a refusal is a body, not a request."""
    inner = server.head(method="GET", path="/v1/models")
    head = server.head(JSON_TYPE, f"Content-Length: {len(inner)}", key="wrong")
    with server.connect() as connection:
        connection.sendall(head + inner)
        got = answer(connection)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096) == b""
    return got


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
