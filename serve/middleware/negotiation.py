"""Bodies in other formats than JSON: read by Content-Type, answered by Accept. Inside of it all is JSON.

JSON in and out is passed on as it is. An error is JSON, whatever was accepted: what stands outside of this (limits, the
proxy) answers so too, and a client has one form to read.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from conf.schema.access import AccessSpec
from serve.middleware.accept import Accept
from serve.middleware.answer import ASGIApp, Message, Receive, Refused, Scope, Send, refuse_with
from serve.middleware.body import JSON, Gone, read_body, replay
from serve.middleware.header import media_type, with_length
from serve.wire.formats import EMBEDDINGS, MEDIA_TYPES, media_types, read, write
from serve.wire.shape import Malformed

_EVENTS = "text/event-stream"
_PLAIN = (b"", b"*/*", b"application/json")
"""Values of Accept that nearly every client sends."""
_GROWTH = 4
"""A body may have this many times access.max_body_bytes once it is JSON; see `Measure`."""
_SMALL_BYTES = 64 << 10
"""What is longer is converted in a thread: the event loop has others to serve."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Negotiation:
    """Pure ASGI; stands inside `Access`, which must let `MEDIA_TYPES` in, and directly around `Measure`."""

    def __init__(self, app: ASGIApp, spec: AccessSpec) -> None:
        """Wraps ``app``; the limits are those of `AccessSpec`."""
        self.app, self._spec = app, spec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        kind = media_type(scope["headers"])
        accepted = b", ".join(value for name, value in scope["headers"] if name == b"accept")
        if kind in (JSON, "") and accepted in _PLAIN:
            await self.app(scope, receive, send)
            return
        try:
            scope, receive, send = await self._convert(scope, receive, send, kind, Accept(accepted.decode("latin-1")))
        except Gone:
            return
        except Refused as refused:
            await refuse_with(send, refused)
            return
        await self.app(scope, receive, send)

    async def _convert(
        self, scope: Scope, receive: Receive, send: Send, kind: str, accept: Accept
    ) -> tuple[Scope, Receive, Send]:
        """Returns what the app inside gets: JSON, and a ``send`` that takes JSON.

        Raises:
            Refused: 415, 406, 400, 413 or 408.
            Gone: when the client leaves.
        """
        path = scope["path"]
        known = media_types(path)
        if kind not in (JSON, "", *known):
            raise Refused(415, f"A body here is {_listed([JSON, *known])}.", code="unsupported_media_type")
        # a path without bodies of its own has no say in what is accepted
        wanted = accept.best([JSON, *known, _EVENTS]) if known else JSON
        if wanted is None:
            raise Refused(406, f"An answer here is {_listed([JSON, *known])}.", code="not_acceptable")
        body: dict[str, Any] = scope.get("manta", {}).get("body") or {}
        raw, is_ours = b"", kind in known
        if is_ours:
            raw = await read_body(receive, self._spec.max_body_bytes, self._spec.body_timeout_s)
            body = await _off_loop(len(raw), lambda: _read(kind, raw, path, _GROWTH * self._spec.max_body_bytes))
        if body.get("stream"):
            if not max(accept.quality(_EVENTS)[0], accept.quality(JSON)[0]):
                raise Refused(406, f"A stream is {_EVENTS}.", code="not_acceptable")
            wanted = JSON
        elif wanted == _EVENTS:
            raise Refused(406, "The request asks for no stream.", code="not_acceptable")
        if path == EMBEDDINGS and wanted != JSON and body:
            _ask_for_floats(body)
            is_ours = True
        if is_ours:
            written = await _off_loop(len(raw), lambda: _json(body))
            scope, receive = with_length(_as_json(scope), len(written)), replay(written, receive)
        return scope, receive, send if wanted == JSON else _Answer(send, wanted, path)


class _Answer:
    """A ``send`` that takes a JSON answer and sends it as another type; what is no such answer goes on as it is."""

    def __init__(self, send: Send, wanted: str, path: str) -> None:
        self._send, self._wanted, self._path = send, wanted, path
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] == 200 and media_type(message.get("headers", ())) == JSON:
                self._start = message
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._finish(self._start, b"".join(self._parts))
            return
        await self._send(message)

    async def _finish(self, start: Message, raw: bytes) -> None:
        kind = self._wanted
        try:
            raw = await _off_loop(len(raw), lambda: _write(kind, raw, self._path))
        except Malformed as error:
            _log.warning("an answer of %s cannot be %s (%s): it stays JSON", self._path, kind, error)
            kind = JSON
        ours = (b"content-length", b"content-type")
        headers = [pair for pair in start.get("headers", ()) if pair[0].lower() not in ours]
        headers += [(b"content-type", kind.encode()), (b"content-length", str(len(raw)).encode()), (b"vary", b"accept")]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": raw})


def _read(kind: str, raw: bytes, path: str, max_bytes: int) -> dict[str, Any]:
    try:
        return read(MEDIA_TYPES[kind], raw, path, max_bytes)
    except Malformed as error:
        raise _bad(f"The body is no valid {MEDIA_TYPES[kind].value} for {path}: {error}.") from None


def _json(body: dict[str, Any]) -> bytes:
    try:
        raw = msgspec.json.encode(body)
        # MessagePack alone can hold such numbers at this point; they would become null, which means another thing
        is_exact = b"null" not in raw or not _has_infinity(body)
    except (TypeError, ValueError, RecursionError, OverflowError):
        raise _bad("The body holds what JSON cannot say, or is too deep.") from None
    if not is_exact:
        raise _bad("The body holds a number that is not finite.")
    return raw


def _has_infinity(body: Any) -> bool:
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return True
        if isinstance(value, (dict, list)):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return False


def _write(kind: str, raw: bytes, path: str) -> bytes:
    try:
        body = msgspec.json.decode(raw, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise Malformed("it is no JSON object") from None
    return write(MEDIA_TYPES[kind], body, path)


def _ask_for_floats(body: dict[str, Any]) -> None:
    """Makes vLLM answer with 32-bit floats in base64: as text they would be written and read at ten times the cost."""
    body["encoding_format"] = "base64"
    for field in ("embed_dtype", "endianness"):
        body.pop(field, None)


async def _off_loop(num_bytes: int, convert: Callable[[], _T]) -> _T:
    return convert() if num_bytes <= _SMALL_BYTES else await asyncio.to_thread(convert)


def _as_json(scope: Scope) -> Scope:
    kept = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    return {**scope, "headers": [*kept, (b"content-type", JSON.encode())]}


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _bad(message: str) -> Refused:
    return Refused(400, message, code="invalid_body")
