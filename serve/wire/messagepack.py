"""MessagePack: the JSON objects as they are, but that embeddings are binary: little-endian 32-bit floats."""

from __future__ import annotations

from typing import Any

import msgspec

from serve.wire.shape import Malformed, singles


def encode(body: dict[str, Any]) -> bytes:
    """Returns a JSON object as MessagePack; the lists of floats in ``data[].embedding`` become binary."""
    data = body.get("data")
    if isinstance(data, list):
        body = {**body, "data": [_packed(item) for item in data]}
    return msgspec.msgpack.encode(body)


def _packed(item: Any) -> Any:
    numbers = singles(item.get("embedding")) if isinstance(item, dict) else None
    return item if numbers is None else {**item, "embedding": numbers.tobytes()}


def decode(raw: bytes) -> dict[str, Any]:
    """Returns an object as Python has it: binary and times may be in it, which JSON gets as text.

    Raises:
        Malformed: when it is no MessagePack, too deep, or no object.
    """
    # measured: a list is made only where that many bytes are left, so a declared length costs nothing
    try:
        return msgspec.msgpack.decode(raw, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise Malformed("no MessagePack, too deep, or no object") from None
