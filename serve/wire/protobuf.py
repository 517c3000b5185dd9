"""Protocol Buffers: messages of api.proto."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError, Message

from serve.wire import api_pb2
from serve.wire.shape import Field, Malformed, Shape, fit, pairs, unfit


def encode(body: dict[str, Any], shape: Shape) -> bytes:
    """Returns a JSON object as a message."""
    return getattr(api_pb2, shape.name)(**fit(shape, body)).SerializeToString()


def decode(raw: bytes, shape: Shape) -> dict[str, Any]:
    """Returns a message as a JSON object; fields of later versions are left out.

    Raises:
        Malformed: when it is no such message.
    """
    try:
        message = getattr(api_pb2, shape.name).FromString(raw)
    except DecodeError:
        raise Malformed("no such message") from None
    return _read(message, shape)


def _read(message: Message, shape: Shape) -> dict[str, Any]:
    if shape.name == "Pairs":
        return pairs(list(message.keys), list(message.values))  # type: ignore[attr-defined]
    return unfit(_fields(message, shape))


def _fields(message: Message, shape: Shape) -> Iterator[tuple[Field, Any]]:
    for descriptor, value in message.ListFields():
        field = shape.fields[descriptor.number - 1]
        if field.shape is not None:
            inner = field.shape
            value = [_read(item, inner) for item in value] if field.is_list else _read(value, inner)
        elif field.is_list:
            value = list(value)
        yield field, value
