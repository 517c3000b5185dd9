"""A request's headers, as ASGI gives them: pairs of bytes, names in lower case."""

from __future__ import annotations

from collections.abc import Iterable

from serve.middleware.answer import Refused, Scope

Headers = Iterable[tuple[bytes, bytes]]
_SINGLE = (b"authorization", b"content-type", b"content-length", b"content-encoding", b"host")


def read_headers(headers: Headers, max_bytes: int) -> dict[bytes, bytes]:
    """Returns the headers by name, the last of those that may be there several times.

    Raises:
        Refused: 431 when there are too many, 400 when one that decides something is there twice: whoever stands before
            or behind might go by the other one.
    """
    found: dict[bytes, bytes] = {}
    size = 0
    for name, value in headers:
        size += len(name) + len(value)
        if name in found and name in _SINGLE:
            raise Refused(400, f"The header {name.decode('latin-1')} may be there once.", code="invalid_header")
        found[name] = value
    if size > max_bytes:
        raise Refused(431, f"The headers may have at most {max_bytes} bytes.", code="headers_too_large")
    return found


def media_type(headers: Headers) -> str:
    """Returns the content type without its parameters, in lower case; empty where there is none."""
    value = next((value for name, value in headers if name == b"content-type"), b"")
    return value.split(b";", 1)[0].strip().lower().decode("latin-1")


def with_length(scope: Scope, num_bytes: int) -> Scope:
    """Returns a scope whose content-length is ``num_bytes``: the body's that is passed on."""
    kept = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, (b"content-length", str(num_bytes).encode())]}
