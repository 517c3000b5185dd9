"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A request that goes no further; `refuse_with` answers it."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        param: str | None = None,
    ) -> None:
        """Takes what `refuse` takes."""
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.headers = status, message, kind, code, headers
        self.param = param

    @property
    def body(self) -> bytes:
        """The error as JSON."""
        return error_body(self.message, self.kind, self.code, self.param)


async def nothing() -> None:
    """What a ``send`` that is a plain function returns where it passes nothing on."""


async def refuse(
    send: Send,
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
    param: str | None = None,
) -> None:
    """Answers with an error in OpenAI's shape.

    Args:
        send: of the request; nothing may have been sent on it.
        status: the HTTP status.
        message: one sentence for a person; never text of a prompt, a key or an address.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``, for programs.
        headers: names and values, beside content-type and content-length.
        param: OpenAI's ``param``: the body's field that is wrong.
    """
    body = error_body(message, kind, code, param)
    await answer(send, status, body, [("content-type", "application/json"), *headers])


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """Returns an error in OpenAI's shape as JSON; see `refuse`."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(message: str, kind: str, code: str) -> bytes:
    """Returns an error as an event of a stream, whose status has been sent."""
    return b"data: " + error_body(message, kind, code) + b"\n\n"


async def answer(send: Send, status: int, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
    """Answers with a whole body; content-length is added."""
    named = [*headers, ("content-length", str(len(body)))]
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in named]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def refuse_with(send: Send, refused: Refused) -> None:
    """Answers a request that was refused."""
    await refuse(send, refused.status, refused.message, refused.kind, refused.code, refused.headers, refused.param)
