"""The formats of bodies, and which endpoint has which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

from serve.wire import arrow, flatbuffer, messagepack, protobuf
from serve.wire.shape import shape_of

EMBEDDINGS = "/v1/embeddings"

_MESSAGES = {
    "/v1/chat/completions": ("ChatCompletionRequest", "ChatCompletion"),
    "/v1/completions": ("CompletionRequest", "Completion"),
    EMBEDDINGS: ("EmbeddingRequest", "EmbeddingList"),
    "/tokenize": ("TokenizeRequest", "TokenList"),
    "/detokenize": ("DetokenizeRequest", "Text"),
}
_UNTYPED = ("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/score", "/v1/rerank", "/classify")
ENDPOINTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    _MESSAGES | dict.fromkeys(_UNTYPED, ("Document", "Document"))
)
"""Paths, and the messages of api.proto that a request and an answer are."""


class Format(Enum):
    """How a body is written."""

    json = "JSON"
    messagepack = "MessagePack"
    protobuf = "Protocol Buffers"
    flatbuffers = "FlatBuffers"
    arrow = "Arrow"


MEDIA_TYPES: Mapping[str, Format] = MappingProxyType(
    {
        "application/msgpack": Format.messagepack,
        "application/vnd.msgpack": Format.messagepack,
        "application/x-msgpack": Format.messagepack,
        "application/x-protobuf": Format.protobuf,
        "application/protobuf": Format.protobuf,
        "application/x-flatbuffers": Format.flatbuffers,
        "application/vnd.apache.arrow.stream": Format.arrow,
    }
)
"""Beside JSON."""


def media_types(path: str) -> list[str]:
    """Returns the types beside JSON that an endpoint reads and writes, none for a path that is no endpoint."""
    if path not in ENDPOINTS:
        return []
    return [name for name, format in MEDIA_TYPES.items() if format is not Format.arrow or path == EMBEDDINGS]


def read(format: Format, raw: bytes, path: str, max_bytes: int) -> dict[str, Any]:
    """Returns a request's body as an object.

    Args:
        format: one of the path's, not JSON.
        raw: the body.
        path: one of `ENDPOINTS`.
        max_bytes: of what a body may become that uses its parts several times.

    Raises:
        Malformed: when it is not what it should be.
    """
    match format:
        case Format.messagepack:
            return messagepack.decode(raw)
        case Format.protobuf:
            return protobuf.decode(raw, shape_of(ENDPOINTS[path][0]))
        case Format.flatbuffers:
            return flatbuffer.decode(raw, shape_of(ENDPOINTS[path][0]), max_bytes)
        case _:
            return arrow.decode(raw)


def write(format: Format, body: dict[str, Any], path: str) -> bytes:
    """Returns an answer in a format, other than JSON.

    Raises:
        Malformed: when the format cannot hold it: Arrow, for what are no embeddings.
    """
    match format:
        case Format.messagepack:
            return messagepack.encode(body)
        case Format.protobuf:
            return protobuf.encode(body, shape_of(ENDPOINTS[path][1]))
        case Format.flatbuffers:
            return flatbuffer.encode(body, shape_of(ENDPOINTS[path][1]))
        case _:
            return arrow.encode(body)
