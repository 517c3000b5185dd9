"""Each row of the table in docs/security.md, over a socket."""

from __future__ import annotations

import base64
import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from attacker import (
    JSON_TYPE,
    Answer,
    Server,
    bearer,
    chunked,
    dripping,
    endless_chunks,
    left,
    named,
    repeated,
    second,
    smuggled,
    stalled,
    turn,
    unheard,
    websocket,
)
from small_service import CHAT

from serve.keys import read_keys
from serve.wire import api_pb2

DOC = Path(__file__).parents[3] / "docs" / "security.md"
PROTOBUF, ARROW = "application/x-protobuf", "application/vnd.apache.arrow.stream"
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
    "a POST to a public path, then one to another": lambda s: (
        s.without_key("Content-Length: 0", method="POST", path="/health") and s.without_key(method="POST", path=CHAT)
    ),
    "a path of vLLM's that is not exposed": lambda s: s.send(s.head("Content-Length: 0", path="/v1/load_lora_adapter")),
    "Ray Serve's list of applications": lambda s: s.send(s.head(method="GET", path="/-/routes")),
    "a path of 20 kB": lambda s: s.send(s.head(method="GET", path="/v1/models/" + "a" * 20_000)),
    "a websocket with a key": websocket,
    "a request inside of a refused one's body": smuggled,
    "the beginning of a TLS connection": lambda s: (
        s.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")[0],
        "-",
    ),
    "a deadline of 0": lambda s: s.post({}, "X-Request-Timeout: 0"),
    "a deadline of -1": lambda s: s.post({}, "X-Request-Timeout: -1"),
    "a deadline that is no number": lambda s: s.post({}, "X-Request-Timeout: nan"),
    "a deadline twice": lambda s: s.post({}, "X-Request-Timeout: 5", "X-Request-Timeout: 500"),
    "a deadline in 30 years": lambda s: s.post({}, "X-Request-Timeout: 999999999"),
    "a request id of 10 kB": lambda s: named(s, "X-Request-ID: " + "a" * 10_000),
    "a request id that a log would read as another field": lambda s: named(s, 'X-Request-ID: a", "key": "b'),
    "two request ids": lambda s: named(s, "X-Request-ID: a", "X-Request-ID: b"),
    "Ray Serve's header that a disconnect is nothing": lambda s: unheard(s, "X-Request-Disconnect-Disabled: ?1"),
    "Ray Serve's header for a deadline": lambda s: unheard(s, "X-Request-Timeout-Seconds: -1"),
    "headers of 40 kB": lambda s: s.raw(b"{}", "X-Long: " + "a" * 40_000),
    "3,000 headers": lambda s: s.raw(b"{}", *[f"X-{number}: abcdef" for number in range(3000)]),
    "a content-length beyond the limit": lambda s: s.send(s.head(JSON_TYPE, "Content-Length: 65537")),
    "a content-length of 18 digits": lambda s: s.send(s.head(JSON_TYPE, "Content-Length: " + "9" * 18)),
    "a content-length of 30 digits": lambda s: (s.send(s.head(JSON_TYPE, "Content-Length: " + "9" * 30))[0], "-"),
    "a content-length beyond the limit that waits for a go": lambda s: s.send(
        s.head(JSON_TYPE, "Content-Length: 65537", "Expect: 100-continue")
    ),
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
    "a type that nobody reads": lambda s: s.raw(b"a: 1", kind="application/yaml"),
    "a type of another endpoint": lambda s: s.raw(b"a", kind=ARROW),
    "a type that nobody writes": lambda s: s.post({}, "Accept: image/png"),
    "a stream of Protocol Buffers": lambda s: s.post({"stream": True}, f"Accept: {PROTOBUF}"),
    "MessagePack cut short": lambda s: s.raw(b"\x81\xa5model", kind="application/msgpack"),
    "MessagePack of four billion fields": lambda s: s.raw(b"\xdf\xff\xff\xff\xff\xa1a", kind="application/msgpack"),
    "MessagePack 100 levels deep": lambda s: s.raw(b"\x81\xa1a" * 100 + b"\xc0", kind="application/msgpack"),
    "MessagePack with infinity": lambda s: s.raw(b"\x81\xa1a\xcb\x7f\xf0" + b"\0" * 6, kind="application/msgpack"),
    "Protocol Buffers of a false length": lambda s: s.raw(b"\x0a\xff\xff\xff\xff\x0f", kind=PROTOBUF),
    "Protocol Buffers with max_tokens of -1": lambda s: s.raw(
        api_pb2.ChatCompletionRequest(max_tokens=-1).SerializeToString(), kind=PROTOBUF
    ),
    "Protocol Buffers with a model of a path upwards": lambda s: s.raw(
        api_pb2.ChatCompletionRequest(model="../adapter").SerializeToString(), kind=PROTOBUF
    ),
    "a FlatBuffer that leads out of itself": lambda s: s.raw(b"\xff\xff\xff\x7f" * 4, kind="application/x-flatbuffers"),
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
    "a model with a path upwards, the other slash": lambda s: s.post({"model": "tuned\\..\\..\\passwd"}),
    "a model of 10 kB": lambda s: s.post({"model": "a" * 10_000}),
    "a model with a NUL": lambda s: s.post({"model": "demo\0.bin"}),
    "a model that is a list": lambda s: s.post({"model": ["demo"]}),
    "a turn before its class": lambda s: turn(s, b'{"priority": -1000}'),
    "a turn before its class, named twice": lambda s: turn(s, b'{"priority": 100, "priority": -1000}'),
    "a turn as text": lambda s: s.post({"priority": "-1"}),
    "one request more than a minute holds": repeated,
    "more tokens than a minute holds": lambda s: s.post({"max_tokens": 501}, key=s.frugal),
    "a second request of a key that may have one": second,
}


def rows() -> list[tuple[str, int, str]]:
    table = DOC.read_text().split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [(what, int(status), code) for what, status, code in cells]


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
