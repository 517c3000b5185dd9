"""HTTP's status codes as those of gRPC, with details that tell nothing of what is inside."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import msgspec

MAX_DETAILS_CHARS = 1000
"""Details are a header, and clients bound those."""
_CODES = MappingProxyType(
    {
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        405: "UNIMPLEMENTED",
        408: "DEADLINE_EXCEEDED",
        413: "RESOURCE_EXHAUSTED",
        429: "RESOURCE_EXHAUSTED",
        501: "UNIMPLEMENTED",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
)
_TEXTS = MappingProxyType(
    {
        "UNAVAILABLE": "The service has no room for more requests now.",
        "DEADLINE_EXCEEDED": "The answer was not complete in time.",
        "CANCELLED": "The client has left.",
        "UNIMPLEMENTED": "The service does not have this.",
    }
)
_EVENTS = MappingProxyType({"deadline_exceeded": 504, "replica_lost": 503, "replica_leaving": 503})
"""Codes of errors in a stream, whose status has been sent, by what they would have had."""


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Body(msgspec.Struct):
    error: _Error


_decoder = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A call without its answer."""

    code: str
    """The name of one of gRPC's codes."""
    details: str
    cause: str
    """OpenAI's ``code`` where there is one, for programs."""


def failure(status: int, body: bytes) -> Failure:
    """Returns what a refusal is to a client of gRPC.

    Args:
        status: HTTP's.
        body: an error in OpenAI's shape. Its message is passed on where the client is at fault.
    """
    try:
        error = _decoder.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        error = _Error()
    code = code_of(status)
    message = error.message if status < 500 else ""
    cause = error.code if isinstance(error.code, str) and error.code.isascii() else f"status_{status}"
    return Failure(code=code, details=message[:MAX_DETAILS_CHARS] or text_of(code), cause=cause)


def event_failure(body: bytes) -> Failure:
    """Returns what an error event of a stream is: vLLM's has a status for its code, ours has a name."""
    try:
        code = _decoder.decode(body).error.code
    except (msgspec.MsgspecError, UnicodeDecodeError):
        code = None
    status = code if isinstance(code, int) and 400 <= code <= 599 else _EVENTS.get(str(code), 500)
    return failure(status, body)


def code_of(status: int) -> str:
    """Returns the name of gRPC's code for an HTTP status that is an error."""
    return _CODES.get(status, "INVALID_ARGUMENT" if 400 <= status < 500 else "INTERNAL")


def text_of(code: str) -> str:
    """Returns the details where nothing better may be said."""
    return _TEXTS.get(code, "The request failed.")
