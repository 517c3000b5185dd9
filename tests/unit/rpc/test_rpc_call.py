from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import msgspec
import pytest

from serve.middleware.answer import Receive, Scope, Send, answer, refuse
from serve.rpc.call import CAUSE, Calls, answer_many, answer_once
from serve.wire import api_pb2, protobuf
from serve.wire.shape import shape_of

CHUNK = {"id": "chat-1", "choices": [{"index": 0, "delta": {"content": "Grüße", "tool_calls": [{"index": 0}]}}]}


class Context:
    """Ray Serve's, as far as a replica knows it."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = list(metadata)
        self.code, self.details, self.trailing = None, "", []

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self.metadata

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        self.trailing = metadata


class App:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, *chunks: bytes, kind: str = "text/event-stream", status: int = 200, fails: bool = False) -> None:
        self.chunks, self.kind, self.status, self.fails = chunks, kind, status, fails
        self.body, self.scope = b"", {}
        self.is_finished = self.is_cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.body = scope, (await receive())["body"]
        headers = [(b"content-type", self.kind.encode()), (b"x-request-id", b"id-1")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        try:
            for chunk in self.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await asyncio.sleep(0)
            if self.fails:
                raise RuntimeError("10.0.0.1")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            self.is_finished = True
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def streamed(app: App, context: Context) -> list[bytes]:
    request = api_pb2.ChatCompletionRequest(model="demo", stream=False).SerializeToString()
    return [m.SerializeToString() async for m in answer_many(app, "ChatCompletionsStream", request, context)]


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_become_messages_however_they_are_cut(size: int):
    raw = event(CHUNK) + b": a comment\n\n" + event(CHUNK) + b"data: [DONE]\n\n"
    app, context = App(*[raw[place : place + size] for place in range(0, len(raw), size)]), Context()
    parts = [api_pb2.ChatCompletionChunk.FromString(part) for part in await streamed(app, context)]
    assert [part.choices[0].delta.content for part in parts] == ["Grüße", "Grüße"]
    assert parts[0].choices[0].delta.tool_calls[0].index == 0
    assert (context.code, context.trailing) == (None, [("x-request-id", "id-1")])
    assert app.is_finished  # or the log would say that its client has left
    assert api_pb2.ChatCompletionRequest.FromString(app.body).stream


@pytest.mark.parametrize(
    "last, code",
    [
        (event({"error": {"message": "10.0.0.1", "type": "x", "code": "deadline_exceeded"}}), "DEADLINE_EXCEEDED"),
        (event({"error": {"message": "10.0.0.1", "type": "x", "code": "replica_lost"}}), "UNAVAILABLE"),
        (event({"error": {"message": "10.0.0.1", "type": "x", "code": 500}}), "INTERNAL"),
        (event({"error": {"message": "too long", "type": "x", "code": 400}}), "INVALID_ARGUMENT"),
        (b"", "INTERNAL"),
    ],
)
async def test_a_stream_that_breaks_off_has_a_status_and_no_internals(last: bytes, code: str):
    context = Context()
    first, end = await streamed(App(event(CHUNK), last), context)
    assert first
    assert not end  # which the proxy leaves out: it brings the context
    assert context.code is grpc.StatusCode[code]
    assert "10.0.0.1" not in context.details
    assert {CAUSE, "x-request-id"} <= set(dict(context.trailing))


async def test_an_app_that_raises_in_a_stream_is_internal():
    context = Context()
    assert len(await streamed(App(event(CHUNK), fails=True), context)) == 2
    assert context.code is grpc.StatusCode.INTERNAL


async def test_a_refusal_is_told_before_any_message():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(send, 404, "There is no such model.", code="model_not_found")

    for name in ("ChatCompletions", "ChatCompletionsStream"):
        context = Context()
        if name.endswith("Stream"):
            messages = [message async for message in answer_many(app, name, b"", context)]
        else:
            messages = [await answer_once(app, name, b"", context)]
        assert [message.SerializeToString() for message in messages] == [b""]
        assert (context.code, context.details) == (grpc.StatusCode.NOT_FOUND, "There is no such model.")
        assert dict(context.trailing)[CAUSE] == "model_not_found"


async def test_a_call_that_is_cancelled_cancels_the_app():
    app, context = App(*[event(CHUNK)] * 100), Context()
    stream = answer_many(app, "CompletionsStream", b"", context)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert app.is_cancelled


async def test_an_answer_is_a_message_whether_the_app_gives_one_or_json():
    body = {"object": "list", "data": [{"id": "demo", "max_model_len": 1024, "permission": [{"id": 1}]}]}
    app, context = App(json.dumps(body).encode(), kind="application/json"), Context()
    models = api_pb2.ModelList.FromString((await answer_once(app, "ListModels", b"", context)).SerializeToString())
    assert (models.data[0].id, models.data[0].max_model_len) == ("demo", 1024)
    assert msgspec.json.decode(models.data[0].extra_json) == {"permission": [{"id": 1}]}
    assert (app.scope["method"], app.scope["path"]) == ("GET", "/v1/models")

    raw = protobuf.encode({"id": "chat-1"}, shape_of("ChatCompletion"))
    app = App(raw, kind="application/x-protobuf")
    request = api_pb2.ChatCompletionRequest(model="demo", stream=True).SerializeToString()
    assert (await answer_once(app, "ChatCompletions", request, context)).SerializeToString() == raw
    assert not api_pb2.ChatCompletionRequest.FromString(app.body).stream


async def test_metadata_becomes_headers_where_it_is_one_that_is_heard():
    app = App(b"{}", kind="application/json")
    metadata = [("authorization", "Bearer a"), ("authorization", "Bearer b"), ("x-request-timeout", "5"), ("host", "x")]
    await answer_once(app, "Embeddings", b"", Context(*metadata, ("application", "other"), ("content-length", "-1")))
    kinds = [(b"content-type", b"application/x-protobuf"), (b"accept", b"application/x-protobuf")]
    given = [(name.encode(), value.encode()) for name, value in metadata[:3]]
    assert app.scope["headers"] == [*given, *kinds]  # both keys: the service refuses that


async def test_without_an_app_a_call_is_unavailable():
    context = Context()
    assert not (await Calls().ChatCompletions(b"", context)).SerializeToString()
    assert context.code is grpc.StatusCode.UNAVAILABLE
    context = Context()
    assert len([message async for message in Calls().CompletionsStream(b"", context)]) == 1
    assert context.code is grpc.StatusCode.UNAVAILABLE


async def test_every_call_of_the_schema_is_there():
    calls = api_pb2.DESCRIPTOR.services_by_name["Manta"].methods_by_name
    from serve.rpc.method import METHODS, SERVICE

    assert api_pb2.DESCRIPTOR.services_by_name["Manta"].full_name == SERVICE
    assert set(calls) == set(METHODS)
    for name, call in calls.items():
        assert call.output_type.name == METHODS[name].answer
        assert call.server_streaming is METHODS[name].is_stream
        assert hasattr(Calls, name)


async def test_an_answer_of_another_kind_is_not_mixed_up():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 500, b"<html>10.0.0.1</html>", [("content-type", "text/html")])

    context = Context()
    await answer_once(app, "Completions", b"", context)
    assert (context.code, context.details) == (grpc.StatusCode.INTERNAL, "The request failed.")
