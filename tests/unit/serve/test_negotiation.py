from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_service import CHAT, chat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from conf.schema.access import AccessSpec
from conf.schema.batches import BatchesSpec
from serve.middleware.accept import Accept
from serve.middleware.stack import make_access, make_formats
from serve.wire import api_generated, api_pb2, flatbuffer
from serve.wire.formats import EMBEDDINGS, MEDIA_TYPES, Format
from serve.wire.shape import shape_of

MSGPACK, PROTOBUF, FLAT = "application/msgpack", "application/x-protobuf", "application/x-flatbuffers"
ARROW, JSON = "application/vnd.apache.arrow.stream", "application/json"
VECTOR = struct.pack("<3f", 0.5, -1.25, 3.0)
MESSAGES = [{"role": "user", "content": "Hello"}]
PLAIN_SPEC = AccessSpec(open=True, max_body_bytes=1 << 16)


async def embed(request: Request) -> Response:
    """As vLLM: base64 where it is asked for."""
    body = await request.json()
    is_text = body.get("encoding_format") == "base64"
    value: Any = base64.b64encode(VECTOR).decode() if is_text else list(struct.unpack("<3f", VECTOR))
    data = [{"index": n, "object": "embedding", "embedding": value} for n in range(len(body["input"]))]
    if body.get("ragged"):
        data.append({"index": 1, "object": "embedding", "embedding": base64.b64encode(VECTOR[:4]).decode()})
    return JSONResponse({"object": "list", "model": "demo", "data": data, "got": body, "usage": {"total_tokens": 7}})


async def odd(request: Request) -> Response:
    return PlainTextResponse("no JSON")


def service(folder: Path, spec: AccessSpec = PLAIN_SPEC) -> httpx.AsyncClient:
    routes = [Route(path, chat, methods=["POST"]) for path in (CHAT, "/v1/completions", "/v1/responses")]
    routes += [Route(EMBEDDINGS, embed, methods=["POST"]), Route("/classify", odd, methods=["POST"])]
    spec.keys_file = str(folder / "keys.json")
    app = make_access(make_formats(Starlette(routes=routes), spec), spec, (), BatchesSpec(), "manta")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")  # type: ignore[arg-type]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with service(tmp_path) as made:
        yield made


def kind(answer: httpx.Response) -> str:
    return answer.headers["content-type"]


def code(answer: httpx.Response) -> tuple[int, str]:
    """Of a refusal, which is JSON in OpenAI's shape whatever was accepted."""
    assert kind(answer) == JSON
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "header, best",
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (JSON, JSON),
        ("application/json; charset=utf-8", JSON),
        (MSGPACK, MSGPACK),
        ("APPLICATION/MSGPACK", MSGPACK),
        (f"{MSGPACK}, */*", MSGPACK),
        (f"{MSGPACK}, {JSON}", JSON),
        (f"{MSGPACK};q=0.5, {JSON};q=0.4", MSGPACK),
        (f"{MSGPACK};q=0.5, {JSON};q=0.6", JSON),
        (f"{JSON};q=0, */*", MSGPACK),
        (f"application/*;q=0, {PROTOBUF}", PROTOBUF),
        (f"{MSGPACK};q=0.2, */*;q=0.9, {JSON};q=0", PROTOBUF),
        ("text/html, image/gif, *; q=.2, */*; q=.2", JSON),
        (f"{MSGPACK};q=2, {PROTOBUF};q=x, {FLAT};q=0.1", FLAT),
        ("text/html", None),
        (f"{JSON};q=0", None),
        ("*/*;q=0", None),
        ("*/json", None),
        (", ;q=1,/,a/,/b", None),
    ],
)
def test_the_most_welcome_type(header: str, best: str | None):
    assert Accept(header).best([JSON, MSGPACK, PROTOBUF, FLAT]) == best


@given(header=st.text(alphabet="*/;,=q01. aJson\xff", max_size=60))
def test_any_header_has_an_outcome(header: str):
    assert Accept(header).best([JSON, MSGPACK]) in (JSON, MSGPACK, None)


async def test_json_is_passed_on_as_it_is(client: httpx.AsyncClient):
    raw = b'{ "model":"m" ,"messages": [] }'
    answer = await client.post(CHAT, content=raw, headers={"content-type": JSON})
    assert kind(answer) == JSON
    assert answer.json()["is_framed"]
    assert answer.json()["got"] == {"model": "m", "messages": []}


@pytest.mark.parametrize("accepted", [name for name, format in MEDIA_TYPES.items() if format is not Format.arrow])
async def test_json_is_answered_in_every_format(client: httpx.AsyncClient, accepted: str):
    ask = {"model": "m", "fake_usage": 5}
    answer = await client.post(CHAT, json=ask, headers={"accept": accepted})
    assert (answer.status_code, kind(answer)) == (200, accepted)
    assert answer.headers["content-length"] == str(len(answer.content))
    match MEDIA_TYPES[accepted]:
        case Format.messagepack:
            assert msgspec.msgpack.decode(answer.content)["got"] == ask
        case Format.protobuf:
            assert api_pb2.ChatCompletion.FromString(answer.content).usage.total_tokens == 5
        case _:
            assert api_generated.ChatCompletion.GetRootAs(answer.content).Usage().TotalTokens() == 5


@pytest.mark.parametrize("sent", [MSGPACK, PROTOBUF, FLAT])
async def test_every_format_reaches_the_app_as_json(client: httpx.AsyncClient, sent: str):
    ask = {"model": "m", "messages": MESSAGES, "temperature": 0.5, "new_field": [1, {"a": None}]}
    extra = msgspec.json.encode({"new_field": ask["new_field"]}).decode()
    message = api_pb2.ChatCompletionRequest(model="m", messages=MESSAGES, temperature=0.5, extra_json=extra)  # type: ignore[arg-type]
    raw = {
        MSGPACK: msgspec.msgpack.encode(ask),
        PROTOBUF: message.SerializeToString(),
        FLAT: flatbuffer.encode(ask, shape_of("ChatCompletionRequest")),
    }[sent]
    answer = await client.post(CHAT, content=raw, headers={"content-type": sent})
    assert kind(answer) == JSON
    got = answer.json()
    assert got["got"] == ask
    assert got["is_framed"]
    assert got["manta"]["body"] == ask  # what stands inside knows the body, as it does of JSON


async def test_a_path_without_messages_of_its_own_takes_a_document(client: httpx.AsyncClient):
    raw = api_pb2.Document(extra_json='{"input": "Hello"}').SerializeToString()
    headers = {"content-type": PROTOBUF, "accept": PROTOBUF}
    answer = await client.post("/v1/responses", content=raw, headers=headers)
    got = msgspec.json.decode(api_pb2.Document.FromString(answer.content).extra_json)
    assert got["got"] == {"input": "Hello"}


@pytest.mark.parametrize("accepted", [MSGPACK, PROTOBUF, FLAT, ARROW])
async def test_embeddings_are_asked_for_as_bytes(client: httpx.AsyncClient, accepted: str):
    ask = {"model": "m", "input": ["a", "b"], "embed_dtype": "float16", "endianness": "big"}
    answer = await client.post(EMBEDDINGS, json=ask, headers={"accept": accepted})
    assert kind(answer) == accepted
    assert answer.content.count(VECTOR) == 2
    if accepted == MSGPACK:
        got = msgspec.msgpack.decode(answer.content)["got"]
        assert got == {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}


async def test_texts_in_arrow_give_vectors_in_arrow(client: httpx.AsyncClient):
    table = pa.table({"input": pa.array(["a", "b", "c"])}).replace_schema_metadata({"model": "m"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = {"content-type": ARROW, "accept": ARROW}
    answer = await client.post(EMBEDDINGS, content=sink.getvalue().to_pybytes(), headers=headers)
    found = pa.ipc.open_stream(answer.content).read_all()
    assert found["embedding"].to_pylist() == [[0.5, -1.25, 3.0]] * 3
    assert msgspec.json.decode(found.schema.metadata[b"got"])["input"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "path, headers, refusal",
    [
        (CHAT, {"content-type": "text/plain"}, (415, "unsupported_media_type")),
        (CHAT, {"content-type": ARROW}, (415, "unsupported_media_type")),
        ("/v1/models", {"content-type": MSGPACK}, (415, "unsupported_media_type")),
        (CHAT, {"content-type": MSGPACK, "content-encoding": "gzip"}, (415, "unsupported_media_type")),
        (CHAT, {"content-type": JSON, "accept": "text/html"}, (406, "not_acceptable")),
        (CHAT, {"content-type": JSON, "accept": ARROW}, (406, "not_acceptable")),
        (CHAT, {"content-type": JSON, "accept": "text/event-stream"}, (406, "not_acceptable")),
    ],
)
async def test_what_nobody_knows_is_refused(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], refusal: tuple[int, str]
):
    assert code(await client.post(path, content=b"{}", headers=headers)) == refusal


@pytest.mark.parametrize(
    "accept, is_stream",
    [
        ("*/*", True),
        (JSON, True),
        ("text/event-stream", True),
        (f"{MSGPACK}, {JSON};q=0.1", True),
        (MSGPACK, False),
        (PROTOBUF, False),
        (f"{MSGPACK}, {JSON};q=0", False),
    ],
)
@pytest.mark.parametrize("sent", [JSON, MSGPACK])
async def test_a_stream_has_one_form(client: httpx.AsyncClient, accept: str, is_stream: bool, sent: str):
    encode = msgspec.json.encode if sent == JSON else msgspec.msgpack.encode
    body = encode({"model": "m", "stream": True})
    answer = await client.post(CHAT, content=body, headers={"accept": accept, "content-type": sent})
    if is_stream:
        assert kind(answer).startswith("text/event-stream")
        assert answer.content.endswith(b"data: [DONE]\n\n")
    else:
        assert code(answer) == (406, "not_acceptable")


@pytest.mark.parametrize("accepted", [MSGPACK, PROTOBUF, FLAT])
async def test_an_error_is_json_whatever_is_accepted(client: httpx.AsyncClient, accepted: str):
    answer = await client.post(CHAT, json={"model": "unknown"}, headers={"accept": accepted})
    assert code(answer) == (404, "model_not_found")


async def test_an_answer_that_is_no_json_goes_on(client: httpx.AsyncClient):
    answer = await client.post("/classify", json={"input": "a"}, headers={"accept": MSGPACK})
    assert (kind(answer), answer.text) == ("text/plain; charset=utf-8", "no JSON")


async def test_an_answer_that_arrow_cannot_hold_stays_json(client: httpx.AsyncClient):
    answer = await client.post(EMBEDDINGS, json={"input": ["a"], "ragged": True}, headers={"accept": ARROW})
    assert kind(answer) == JSON
    assert [len(item["embedding"]) for item in answer.json()["data"]] == [16, 8]


async def test_no_vectors_are_a_table_without_rows(client: httpx.AsyncClient):
    answer = await client.post(EMBEDDINGS, json={"input": []}, headers={"accept": ARROW})
    assert kind(answer) == ARROW
    assert pa.ipc.open_stream(answer.content).read_all().num_rows == 0


@pytest.mark.parametrize(
    "body, refusal",
    [
        (b"\xc1", (400, "invalid_body")),
        (b"\x90", (400, "invalid_body")),
        (msgspec.msgpack.encode({"temperature": float("nan")}), (400, "invalid_body")),
        (msgspec.msgpack.encode({"a": [float("inf")]}), (400, "invalid_body")),
        (msgspec.msgpack.encode({"a": {None: 1}}), (400, "invalid_body")),
        (msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(3, b"x")}), (400, "invalid_body")),
        (b"\x81\xa1a" * 100 + b"\xc0", (400, "json_too_deep")),
        (b"\x81\xa1a" * 10_000 + b"\xc0", (400, "invalid_body")),
        (msgspec.msgpack.encode({"max_tokens": -1}), (400, "invalid_value")),
        (msgspec.msgpack.encode({"model": "../../etc/passwd"}), (404, "model_not_found")),
        (msgspec.msgpack.encode({"a": "\x01" * 60_000}), (413, "body_too_large")),
        (msgspec.msgpack.encode({"a": "b" * 70_000}), (413, "body_too_large")),
        (b"", (400, "invalid_body")),
    ],
)
async def test_limits_hold_in_other_formats(client: httpx.AsyncClient, body: bytes, refusal: tuple[int, str]):
    answer = await client.post(CHAT, content=body, headers={"content-type": MSGPACK})
    assert code(answer) == refusal


@pytest.mark.parametrize("sent", [MSGPACK, PROTOBUF, FLAT, ARROW])
@settings(max_examples=100, deadline=None)
@given(raw=st.binary(min_size=1, max_size=300))
async def test_no_bytes_are_an_error_of_the_service(tmp_path_factory: pytest.TempPathFactory, sent: str, raw: bytes):
    path = EMBEDDINGS if sent == ARROW else CHAT
    async with service(tmp_path_factory.getbasetemp()) as made:
        answer = await made.post(path, content=raw, headers={"content-type": sent, "accept": sent})
    assert answer.status_code in (200, 400, 404, 406)  # the last where the bytes ask for a stream
