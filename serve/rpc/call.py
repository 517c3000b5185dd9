"""In a replica: what Ray Serve's gRPC proxy calls there, as requests of the replica's own app.

So keys, limits, deadlines, formats, the cache and the figures are those of HTTP, and nothing crosses another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import msgspec

from serve.middleware.answer import ASGIApp, Message, Scope
from serve.middleware.header import media_type
from serve.rpc.event import DONE, Events
from serve.rpc.method import METHODS, Method
from serve.rpc.status import Failure, event_failure, failure
from serve.wire import protobuf
from serve.wire.shape import shape_of

PROTOBUF = "application/x-protobuf"
CAUSE = "x-error-code"
"""Metadata of a call that failed; that it is there says that code and details were meant for the client."""
HEARD = frozenset({"authorization", "x-request-id", "x-request-timeout", "traceparent", "tracestate", "cache-control"})
"""Metadata that becomes headers."""
_SAID = ("x-request-id", "x-manta-cache", "retry-after", "x-should-retry", "x-ratelimit-")
"""Beginnings of headers that become metadata."""
_MAX_WAITING = 16
"""Pieces of an answer that are made and not yet fetched."""
_NOTHING: Message = {"status": 503}
_CUT = b'{"error": {"message": "", "code": "internal_error"}}'


class Encoded:
    """A message that is bytes already; Ray Serve asks it for them."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        """Takes the bytes."""
        self._raw = raw

    def SerializeToString(self) -> bytes:  # noqa: D102 - protobuf's name
        return self._raw


class Calls:
    """The methods of the service Manta; whoever answers them sets ``rpc_app``."""

    rpc_app: ASGIApp | None = None

    async def ListModels(self, request: bytes, grpc_context: Any) -> Encoded:
        """See api.proto."""
        return await answer_once(self.rpc_app, "ListModels", request, grpc_context)

    async def ChatCompletions(self, request: bytes, grpc_context: Any) -> Encoded:
        """See api.proto."""
        return await answer_once(self.rpc_app, "ChatCompletions", request, grpc_context)

    async def Completions(self, request: bytes, grpc_context: Any) -> Encoded:
        """See api.proto."""
        return await answer_once(self.rpc_app, "Completions", request, grpc_context)

    async def Embeddings(self, request: bytes, grpc_context: Any) -> Encoded:
        """See api.proto."""
        return await answer_once(self.rpc_app, "Embeddings", request, grpc_context)

    async def ChatCompletionsStream(self, request: bytes, grpc_context: Any) -> AsyncIterator[Encoded]:
        """See api.proto."""
        async for message in answer_many(self.rpc_app, "ChatCompletionsStream", request, grpc_context):
            yield message

    async def CompletionsStream(self, request: bytes, grpc_context: Any) -> AsyncIterator[Encoded]:
        """See api.proto."""
        async for message in answer_many(self.rpc_app, "CompletionsStream", request, grpc_context):
            yield message


async def answer_once(app: ASGIApp | None, name: str, request: bytes, context: Any) -> Encoded:
    """Answers a call with one message.

    Args:
        app: the service's; null is one that is not there yet.
        name: the call's.
        request: a message's bytes.
        context: Ray Serve's; a failure is told there, and then the message is empty.
    """
    method = METHODS[name]
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    if app is not None:
        await app(scope_of(method, context.invocation_metadata()), _receiving(request + method.tail), send)
    start = next(iter(messages), _NOTHING)
    body = b"".join(message.get("body", b"") for message in messages[1:])
    if start["status"] != 200:
        return _fail(context, failure(start["status"], body), start.get("headers", ()))
    context.set_trailing_metadata(_metadata(start["headers"]))
    if media_type(start["headers"]) != PROTOBUF:
        body = protobuf.encode(msgspec.json.decode(body), shape_of(method.answer))
    return Encoded(body)


async def answer_many(app: ASGIApp | None, name: str, request: bytes, context: Any) -> AsyncIterator[Encoded]:
    """Answers a call with a stream of messages; a failure is an empty one at its end. See `answer_once`."""
    method, shape, events = METHODS[name], shape_of(METHODS[name].answer), Events()
    queue: asyncio.Queue[Message | None] = asyncio.Queue(_MAX_WAITING)

    async def run() -> None:
        try:
            if app is not None:
                await app(scope_of(method, context.invocation_metadata()), _receiving(request + method.tail), queue.put)
        finally:
            await queue.put(None)

    task = asyncio.create_task(run())
    status, refusal = 503, b""
    headers: Iterable[tuple[bytes, bytes]] = ()
    is_done, failed = False, None
    try:
        while (message := await queue.get()) is not None:  # to its end, or it would count as left by its client
            if message["type"] == "http.response.start":
                status, headers = message["status"], message["headers"]
                context.set_trailing_metadata(_metadata(headers))
            elif status != 200:
                refusal += message.get("body", b"")
            else:
                for data in events.feed(message.get("body", b"")):
                    if data == DONE:
                        is_done = True
                    elif data.startswith(b'{"error"'):
                        failed = event_failure(data)
                    else:
                        yield Encoded(protobuf.encode(msgspec.json.decode(data), shape))
        if status != 200:
            failed = failure(status, refusal)
        elif not is_done:
            failed = failed or event_failure(_CUT)
        if failed is not None:
            yield _fail(context, failed, headers)
    finally:
        task.cancel()  # its client is gone, where it has not ended
        with suppress(asyncio.CancelledError, Exception):
            await task


def scope_of(method: Method, metadata: Iterable[tuple[str, str]]) -> Scope:
    """Returns ASGI's scope of a call."""
    headers = [(name.encode(), str(value).encode("latin-1", "replace")) for name, value in metadata if name in HEARD]
    if method.verb == "POST":
        accepted = b"text/event-stream" if method.is_stream else PROTOBUF.encode()
        headers += [(b"content-type", PROTOBUF.encode()), (b"accept", accepted)]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "method": method.verb,
        "scheme": "http",
        "path": method.path,
        "raw_path": method.path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {},
    }


def _receiving(body: bytes) -> Any:
    is_given = False

    async def receive() -> Message:
        nonlocal is_given
        if is_given:
            await asyncio.Event().wait()  # a client that leaves cancels the call
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _metadata(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    named = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
    return [pair for pair in named if pair[0].startswith(_SAID)]


def _fail(context: Any, failed: Failure, headers: Iterable[tuple[bytes, bytes]]) -> Encoded:
    import grpc

    context.set_code(grpc.StatusCode[failed.code])
    context.set_details(failed.details)
    context.set_trailing_metadata([*_metadata(headers), (CAUSE, failed.cause)])
    return Encoded(b"")
