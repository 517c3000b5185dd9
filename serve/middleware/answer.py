"""A refusal in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


async def refuse(
    send: Send,
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> None:
    """Answers a request with an error.

    Args:
        send: ASGI's.
        status: of HTTP.
        message: a sentence without the prompt, a key or an address.
        kind: OpenAI's class of the error.
        code: OpenAI's code of the error.
        headers: further ones.
    """
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    await answer(send, status, body, [("content-type", "application/json"), *headers])


async def answer(send: Send, status: int, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
    """Answers a request with a whole body."""
    named = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    named.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": body})
