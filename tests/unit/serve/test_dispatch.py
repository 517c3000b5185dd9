"""Which model a request reaches, in a service of several; rows of docs/security.md among them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.catalogue import Catalogue, Entry
from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send, answer
from serve.middleware.dispatch import Dispatch, model_of, unprefixed
from serve.wire import messagepack
from serve.wire.formats import MEDIA_TYPES

DOC = Path(__file__).parents[3] / "docs" / "security.md"
CHAT = "/v1/chat/completions"
KEY = {"authorization": "Bearer key"}
ENTRIES = [("big", None, ""), ("big-lora", "big", ""), ("org/small", None, "small"), ("tuned", "org/small", "small")]


def catalogue(*, is_open: bool = True, num: int = len(ENTRIES)) -> Catalogue:
    entries = [Entry(name=name, parent=parent, key=key, max_model_len=8) for name, parent, key in ENTRIES[:num]]
    return Catalogue(entries=entries, created=1, is_open=is_open, max_body_bytes=4096, body_timeout_s=0.1)


class Ray:
    """Takes what reaches Ray Serve; answers /ready with the status of the model that stands there."""

    def __init__(self, **ready: int) -> None:
        self.ready = ready
        self.got: list[tuple[str, bytes]] = []
        self.num_read = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            self.num_read += 1
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.got.append((scope["path"], body))
        await answer(send, self.ready.get(scope["path"].strip("/").split("/")[0], 200), b"{}")


def dispatch(app: ASGIApp, known: Catalogue | None) -> Dispatch:
    async def know() -> Catalogue | None:
        return known

    return Dispatch(app, know)


async def ask(app: ASGIApp, path: str = CHAT, content: bytes = b"", known: Catalogue | None = None, **more: Any) -> Any:
    transport = httpx.ASGITransport(dispatch(app, known or catalogue()))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        headers = {"content-type": "application/json", **more.pop("headers", {})}
        return await client.request(more.pop("method", "POST"), path, content=content, headers=headers)


@pytest.mark.parametrize(
    "name,path",
    [
        ("big", CHAT),
        ("big-lora", CHAT),
        ("org/small", f"/_model/small{CHAT}"),
        ("tuned", f"/_model/small{CHAT}"),
        ("small", CHAT),  # a key of the configuration is no name
        ("nobody", CHAT),
        ("", CHAT),
        (None, CHAT),
        (["tuned"], CHAT),
        ({"model": "tuned"}, CHAT),
        ("../tuned", CHAT),
        ("tuned\u0000", CHAT),
        ("TUNED", CHAT),
    ],
)
async def test_a_body_s_model_says_who_answers_and_the_body_goes_on_as_it_came(name: Any, path: str):
    app, body = Ray(), json.dumps({"messages": [{"model": "tuned"}], "model": name}, indent=1).encode()
    assert (await ask(app, content=body)).status_code == 200
    assert app.got == [(path, body)]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"{", b'{"model": "tuned"', b"[]", b'"tuned"', b"\xff\xfe", b"null", b"[" * 3000, b'{"a":' * 600],
)
async def test_what_names_no_model_or_cannot_be_read_is_the_first_model_s_to_answer(content: bytes):
    app = Ray()
    await ask(app, content=content)
    assert app.got == [(CHAT, content)]


async def test_of_a_name_that_is_there_twice_the_last_counts_as_it_does_for_the_replica():
    app = Ray()
    await ask(app, content=b'{"model": "big", "model": "tuned"}')
    await ask(app, content=b'{"model": "tuned", "model": "big"}')
    assert [path for path, _ in app.got] == [f"/_model/small{CHAT}", CHAT]


plain = st.recursive(
    st.none() | st.text() | st.integers(-9, 9), lambda inner: st.dictionaries(st.text(), inner), max_leaves=6
)


@settings(deadline=None)
@given(plain | st.fixed_dictionaries({"model": plain, "messages": plain}))
def test_the_model_is_what_a_parser_finds(body: Any):
    model = body.get("model") if isinstance(body, dict) else None
    for kind, encode in (("application/json", msgspec.json.encode), ("application/msgpack", msgspec.msgpack.encode)):
        assert model_of(kind, encode(body), CHAT, 1 << 20) == (model if isinstance(model, str) else None)


@settings(deadline=None)
@given(st.sampled_from(["", "text/plain", "application/json", *MEDIA_TYPES]), st.binary(max_size=64))
def test_no_body_is_too_broken_to_be_passed_on(kind: str, raw: bytes):
    assert isinstance(model_of(kind, raw, "/v1/embeddings", 1 << 20), str | None)


@pytest.mark.parametrize("format", ["messagepack", "protobuf", "flatbuffers", "arrow"])
async def test_the_other_formats_name_their_model_too(format: str):
    from serve.wire import flatbuffer, protobuf
    from serve.wire.shape import shape_of

    body, shape = {"model": "tuned", "input": ["a"]}, shape_of("EmbeddingRequest")
    write: dict[str, Callable[[], bytes]] = {
        "messagepack": lambda: messagepack.encode(body),
        "protobuf": lambda: protobuf.encode(body, shape),
        "flatbuffers": lambda: flatbuffer.encode(body, shape),
        "arrow": lambda: arrow_request(body),
    }
    kind, raw, app = next(kind for kind, each in MEDIA_TYPES.items() if each.name == format), write[format](), Ray()
    await ask(app, "/v1/embeddings", raw, headers={"content-type": kind})
    assert app.got == [("/_model/small/v1/embeddings", raw)]


def arrow_request(body: dict[str, Any]) -> bytes:
    import pyarrow as pa

    table = pa.table({"input": body["input"]}).replace_schema_metadata({"model": body["model"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


async def test_with_one_model_no_body_is_read():
    for known in (catalogue(num=2), None):
        app = Ray()

        async def receive() -> Message:
            raise AssertionError("it reads")

        async def passes(scope: Scope, receive: Receive, send: Send, app: Ray = app) -> None:
            app.got.append((scope["path"], b""))

        scope = {"type": "http", "path": CHAT, "method": "POST", "headers": []}
        await dispatch(passes, known)(scope, receive, lambda message: asyncio.sleep(0))
        assert app.got == [(CHAT, b"")]


@pytest.mark.parametrize("method,path", [("GET", "/v1/models"), ("POST", "/sleep"), ("GET", "/metrics"), ("PUT", CHAT)])
async def test_what_names_no_model_goes_to_the_first_one(method: str, path: str):
    app = Ray()
    await ask(app, path, b'{"model": "tuned"}', method=method)
    assert app.got[0][0] == path


@pytest.mark.parametrize(
    "ready,status",
    [({}, 200), ({"ready": 503}, 503), ({"_model": 503}, 503), ({"_model": 408}, 503), ({"ready": 500}, 500)],
)
async def test_a_service_is_ready_when_each_of_its_models_is(ready: dict[str, int], status: int):
    app = Ray(**ready)
    said = await ask(app, "/ready", method="GET")
    assert said.status_code == status
    assert sorted(path for path, _ in app.got) == ["/_model/small/ready", "/ready"]


async def test_a_replica_of_a_further_model_sees_the_path_that_was_asked_for():
    app = Ray()
    asked = {"type": "http", "path": f"/_model/small{CHAT}", "root_path": "/_model/small", "method": "GET"}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await unprefixed(app)(asked, receive, send)
    assert app.got == [(CHAT, b"")]


def rows() -> list[tuple[str, int, str]]:
    table = DOC.read_text().split("## Several models")[1].split("| --- | --- | --- |\n")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [(what, int(status), code) for what, status, code in cells]


LONG = b'{"model": "tuned", "prompt": "' + b"x" * 5000 + b'"}'
ATTACKS: dict[str, Callable[[], Any]] = {
    "the inner path of a model": lambda: ask(Ray(), f"/_model/small{CHAT}", b"{}"),
    "the inner path, encoded": lambda: ask(Ray(), f"/%5Fmodel/small{CHAT}", b"{}"),
    "the inner path in a GET": lambda: ask(Ray(), "/_model/small/v1/models", method="GET"),
    "the inner path of no model": lambda: ask(Ray(), "/_model", b"{}"),
    "a body beyond the limit": lambda: ask(Ray(), content=LONG),
    "a body that stops half-way": lambda: stalled(KEY),
}


@pytest.mark.parametrize("what,status,code", rows())
async def test_an_attack_gets_what_the_document_says(what: str, status: int, code: str):
    said = await ATTACKS[what]()
    assert (said.status_code, said.json()["error"]["code"]) == (status, code)


def test_every_attack_is_in_the_document():
    assert {what for what, *_ in rows()} == set(ATTACKS)


async def stalled(headers: dict[str, str]) -> httpx.Response:
    """Half a body, and then nothing."""
    sent: list[Message] = []
    messages: list[Message] = [{"type": "http.request", "body": b'{"model": "tu', "more_body": True}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in {"content-type": "application/json", **headers}.items()]
    scope = {"type": "http", "path": CHAT, "method": "POST", "headers": named}
    await dispatch(Ray(), catalogue(is_open=False))(scope, receive, send)
    return httpx.Response(sent[0]["status"], content=sent[1]["body"])


async def test_who_sends_no_key_has_no_body_read_but_by_the_replica_that_refuses_it():
    app = Ray()
    await ask(app, content=b'{"model": "tuned"}', known=catalogue(is_open=False))
    assert app.got[0][0] == CHAT
    await ask(app, content=b'{"model": "tuned"}', known=catalogue(is_open=False), headers=KEY)
    assert app.got[1][0] == f"/_model/small{CHAT}"


async def test_a_client_that_leaves_half_way_reaches_no_replica():
    app = Ray()
    messages: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await dispatch(app, catalogue())({"type": "http", "path": CHAT, "method": "POST", "headers": []}, receive, send)
    assert app.got == []


async def test_a_websocket_to_an_inner_path_is_closed():
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await dispatch(Ray(), catalogue())({"type": "websocket", "path": "/_model/small/x", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
