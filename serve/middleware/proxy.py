"""Around Ray Serve's proxy: what it says by itself, in OpenAI's shape, and what it hears of a client.

Ray Serve calls `layers` in the proxy's process, or in the replica's where replicas take connections themselves.
"""

from __future__ import annotations

import asyncio
import os
import sys

from starlette.middleware import Middleware

from serve.middleware.answer import ASGIApp, Message, Receive, Refused, Scope, Send, error_event, refuse_with
from serve.middleware.deadline import asked_timeout_s
from serve.middleware.header import media_type
from serve.middleware.identity import REQUEST_ID, identify

IMPORT_PATH = "serve.middleware.proxy:layers"
TIMEOUT_VARIABLE, BODY_VARIABLE = "MANTA_REQUEST_TIMEOUT_S", "MANTA_MAX_BODY_BYTES"
MARGIN_S = 5.0
"""What the proxy waits for beyond a request's deadline, so that the replica's answer to it comes first."""
_RAY_TIMEOUT = b"x-request-timeout-seconds"
_RAY_HINTS = (_RAY_TIMEOUT, b"x-request-disconnect-disabled")
"""By these a client could have its request run on without end, whether it is there or not."""
_LOST = error_event("The replica is lost.", "server_error", "replica_lost")
_SAID = {
    404: ("there is nothing at this path", "not_found_error", "not_found"),
    408: ("The request was not answered in time.", "timeout_error", "deadline_exceeded"),
    429: ("The service has no room for more requests now.", "rate_limit_error", "overloaded"),
    500: ("The request failed.", "server_error", "internal_error"),
    503: ("The service has no room for more requests now.", "service_unavailable", "overloaded"),
}


def layers() -> list[Middleware]:
    """Returns what Ray Serve puts around its proxy."""
    timeout_s = float(os.environ.get(TIMEOUT_VARIABLE, "600"))
    max_bytes = int(os.environ.get(BODY_VARIABLE, sys.maxsize))
    return [Middleware(Proxy, timeout_s=timeout_s, max_body_bytes=max_bytes)]  # type: ignore[arg-type]


class Proxy:
    """Bounds how long a request waits for a replica, and how much of its body; puts errors into OpenAI's shape."""

    def __init__(self, app: ASGIApp, timeout_s: float, max_body_bytes: int) -> None:
        """Args: Ray Serve's app, the most that a request may ask for, and the most that a replica reads of a body."""
        self.app, self._timeout_s, self._max_bytes = app, timeout_s, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, request_id, _ = identify(scope["headers"])
        answered = _Answer(send, request_id.encode())
        if scope["path"] == "/-/routes":  # Ray Serve's own; it names the applications
            await refuse_with(answered.send, _refused(404, []))
            return
        headers = [pair for pair in headers if pair[0] not in _RAY_HINTS]
        try:
            asked_s = asked_timeout_s(headers)
        except Refused:
            asked_s = None  # the replica says so, once it knows who asks
        if asked_s is not None:
            headers.append((_RAY_TIMEOUT, str(min(asked_s, self._timeout_s) + MARGIN_S).encode()))
        await self.app({**scope, "headers": headers}, _bounded(receive, self._max_bytes), answered.send)
        await answered.finish()


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """Returns a ``receive`` that stops once a body is too long, which the replica says when it has seen as much.

    Ray Serve takes a body in as fast as it comes, into memory, for as long as the request waits for a replica.
    """
    size = 0

    async def bounded() -> Message:
        nonlocal size
        if size > max_bytes:
            await asyncio.Event().wait()  # Ray Serve cancels this with the request
        message = await receive()
        size += len(message.get("body", b""))
        return message

    return bounded


class _Answer:
    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send, self._request_id = send, request_id
        self._is_begun = self._is_ended = self._is_stream = self._is_replaced = False

    async def finish(self) -> None:
        """Ends an answer whose replica is lost: Ray Serve says nothing then. Nobody hears it where the client left."""
        if not self._is_begun:
            await refuse_with(self._send, _refused(500, [(REQUEST_ID, self._request_id)]))
        elif self._is_stream and not self._is_ended:
            await self._send({"type": "http.response.body", "body": b"\n\n" + _LOST})

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self._is_ended = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self._is_begun = True
            # Ray Serve adds the id to the one that the replica has said
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != REQUEST_ID]
            message = {**message, "headers": [*headers, (REQUEST_ID, self._request_id)]}
            self._is_stream = media_type(headers) == "text/event-stream"
            # an answer of the service itself is never plain text where it is an error
            if message["status"] >= 400 and media_type(headers) in ("text/plain", ""):
                self._is_replaced = True
                await refuse_with(self._send, _refused(message["status"], message["headers"]))
        elif self._is_replaced:
            return
        if not self._is_replaced:
            await self._send(message)


def _refused(status: int, headers: list[tuple[bytes, bytes]]) -> Refused:
    message, kind, code = _SAID.get(status, ("The request failed.", "server_error", f"status_{status}"))
    kept = [(name.decode(), value.decode()) for name, value in headers if name in (b"retry-after", REQUEST_ID)]
    if status in (429, 503) and all(name != "retry-after" for name, _ in kept):
        kept.append(("retry-after", "1"))
    if status == 408:  # as the replica says it
        status, kept = 504, [*kept, ("x-should-retry", "false")]
    return Refused(status, message, kind, code, kept)
