"""What nobody's client sends: each is refused or is an object, and nothing takes long or much memory."""

from __future__ import annotations

import struct
import time
from typing import Any

import flatbuffers
import msgspec
import pyarrow as pa
import pytest
from bodies import bodies_of
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.wire import api_generated, api_pb2, flatbuffer, protobuf
from serve.wire.formats import EMBEDDINGS, Format, read
from serve.wire.shape import Malformed, shape_of

PATHS = dict.fromkeys(Format, "/v1/chat/completions") | {Format.arrow: EMBEDDINGS}
FORMATS = [format for format in Format if format is not Format.json]
MAX_BYTES = 1 << 24


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def texts(*values: str | None, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"input": pa.array(values, kind or pa.string())})


def encoded(format: Format, body: dict[str, Any]) -> bytes:
    shape = shape_of("ChatCompletionRequest")
    match format:
        case Format.messagepack:
            return msgspec.msgpack.encode(body)
        case Format.protobuf:
            return protobuf.encode(body, shape)
        case Format.flatbuffers:
            return flatbuffer.encode(body, shape)
        case _:
            return stream(texts("a", "Grüße", "c" * len(body)))


def is_read(format: Format, raw: bytes) -> bool:
    """Whether it is a body; what is none must be `Malformed` and nothing else."""
    try:
        body = read(format, raw, PATHS[format], MAX_BYTES)
    except Malformed:
        return False
    return isinstance(body, dict)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=200))
def test_any_bytes(format: Format, raw: bytes):
    is_read(format, raw)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), body=bodies_of("ChatCompletionRequest"))
def test_a_body_cut_short_or_with_other_bytes_in_it(format: Format, data: st.DataObject, body: dict[str, Any]):
    raw = encoded(format, body)
    is_read(format, raw[: data.draw(st.integers(0, len(raw)))])
    place = data.draw(st.integers(0, max(0, len(raw) - 4)))
    other = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, b"\x80\0\0\0", b"\0\0\0\x80"]))
    is_read(format, raw[:place] + other + raw[place + len(other) :])


@pytest.mark.parametrize(
    "raw",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\xa1a",
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0",
        b"\x81\xa1a" * 100_000 + b"\xc0",
        b"\x81\xa1a\xa1\xff",
        b"\x80\x80",
        b"\x90",
        b"\xc0",
        b"\xc1",
        b"",
    ],
)
def test_messagepack_of_false_lengths_depth_and_text(raw: bytes):
    assert not is_read(Format.messagepack, raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7fabc",
        b"\x0a\x01\xff",
        b"\x0b" * 200,
        b"\xff" * 11,
        api_pb2.ChatCompletionRequest(extra_json="[" * 100_000).SerializeToString(),
        api_pb2.ChatCompletionRequest(extra_json="[]").SerializeToString(),
        api_pb2.ChatCompletionRequest(temperature=float("nan")).SerializeToString(),
        api_pb2.ChatCompletionRequest(logit_bias={"keys": ["a"], "values": [float("inf")]}).SerializeToString(),
        api_pb2.ChatCompletionRequest(logit_bias={"keys": ["a"]}).SerializeToString(),
        api_pb2.ChatCompletionRequest(response_format_json="{").SerializeToString(),
    ],
)
def test_protobuf_of_false_lengths_text_and_json(raw: bytes):
    assert not is_read(Format.protobuf, raw)


def test_a_flatbuffer_that_leads_out_of_itself():
    raw = flatbuffer.encode({"model": "demo"}, shape_of("ChatCompletionRequest"))
    assert is_read(Format.flatbuffers, raw)
    for root in (-1, -8, 1 << 30, (1 << 31) - 1):
        assert not is_read(Format.flatbuffers, struct.pack("<i", root) + raw[4:])
    length = raw.index(b"demo") - 4
    for said in (5000, 0xFFFFFFFF, 0x7FFFFFFF):
        assert not is_read(Format.flatbuffers, raw[:length] + struct.pack("<I", said) + raw[length + 4 :])


def bomb(num_items: int, name_bytes: int) -> bytes:
    """Messages that are all the same, each with tool calls that are all the same: the product of both to a reader."""
    builder = flatbuffers.Builder()
    name = builder.CreateString("a" * name_bytes)
    api_generated.ToolCallStart(builder)
    api_generated.ToolCallAddId(builder, name)
    call = api_generated.ToolCallEnd(builder)
    api_generated.MessageStartToolCallsVector(builder, num_items)
    for _ in range(num_items):
        builder.PrependUOffsetTRelative(call)
    calls = builder.EndVector()
    api_generated.MessageStart(builder)
    api_generated.MessageAddToolCalls(builder, calls)
    message = api_generated.MessageEnd(builder)
    api_generated.ChatCompletionRequestStartMessagesVector(builder, num_items)
    for _ in range(num_items):
        builder.PrependUOffsetTRelative(message)
    messages = builder.EndVector()
    api_generated.ChatCompletionRequestStart(builder)
    api_generated.ChatCompletionRequestAddMessages(builder, messages)
    builder.Finish(api_generated.ChatCompletionRequestEnd(builder))
    return bytes(builder.Output())


@pytest.mark.parametrize("num_items, name_bytes", [(20_000, 1), (100, 100_000)])
def test_a_flatbuffer_that_uses_its_parts_again_and_again(num_items: int, name_bytes: int):
    raw = bomb(num_items, name_bytes)
    began = time.process_time()
    assert not is_read(Format.flatbuffers, raw)
    assert time.process_time() - began < 5  # 400 million tables, or a gigabyte of text, would take longer


@pytest.mark.parametrize(
    "raw",
    [
        stream(texts("a" * 100_000), compression="zstd"),
        stream(texts("a" * 100_000), compression="lz4"),
        stream(texts("a", None)),
        stream(texts("a", "b", kind=pa.dictionary(pa.int32(), pa.string()))),
        stream(pa.table({"input": pa.array([1, 2])})),
        stream(pa.table({"input": pa.array(["a"]), "more": pa.nulls(1)})),
        stream(pa.table({"text": pa.array(["a"])})),
        stream(texts("a").replace_schema_metadata({"extra_json": '{"input": "b"}'})),
        stream(texts("a").replace_schema_metadata({"extra_json": "[1]"})),
        stream(texts("a").replace_schema_metadata({"model": b"\xff"})),
        stream(texts("a")).replace(b"a\0\0\0", b"\xff\0\0\0"),
        b"",
    ],
)
def test_arrow_that_is_compressed_or_of_other_columns(raw: bytes):
    assert not is_read(Format.arrow, raw)


def test_plain_arrow_is_read():
    assert read(Format.arrow, stream(texts("a", "b")), EMBEDDINGS, MAX_BYTES) == {"input": ["a", "b"]}
