from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from bodies import bodies_of, plain, pruned, text
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.middleware.routes import EXPOSED
from serve.wire import api_generated, api_pb2, arrow, flatbuffer, messagepack, protobuf
from serve.wire.formats import EMBEDDINGS, ENDPOINTS, Format, media_types, write
from serve.wire.shape import Malformed, shape_of

MESSAGES = sorted({name for pair in ENDPOINTS.values() for name in pair})
VECTORS = [[0.5, -1.25, 3.0], [1e-3, 0.0, 2.0]]
CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "created": 1_790_000_000,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Grüße", "tool_calls": [], "annotations": None},
            "logprobs": {"content": [{"token": "G", "logprob": -0.5, "bytes": [71], "top_logprobs": []}]},
            "finish_reason": "stop",
            "stop_reason": 151645,
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3},
    "metrics": {"queue_time_ms": 1.5},
}


def embeddings(is_text: bool) -> dict[str, Any]:
    written = [base64.b64encode(struct.pack("<3f", *vector)).decode() if is_text else vector for vector in VECTORS]
    data = [{"index": n, "object": "embedding", "embedding": value} for n, value in enumerate(written)]
    return {"object": "list", "model": "demo", "data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}}


@pytest.mark.parametrize("name", MESSAGES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_body_comes_back_from_every_schema(name: str, data: st.DataObject):
    body, shape = data.draw(bodies_of(name)), shape_of(name)
    there = protobuf.encode(body, shape)
    back = protobuf.decode(there, shape)
    assert pruned(back) == pruned(body)
    assert flatbuffer.decode(flatbuffer.encode(body, shape), shape, 1 << 20) == back


@settings(deadline=None)
@given(body=st.dictionaries(text, plain))
def test_a_body_comes_back_from_messagepack(body: dict[str, Any]):
    assert messagepack.decode(messagepack.encode(body)) == body


@settings(deadline=None)
@given(texts=st.lists(st.text()), model=st.none() | st.text(), rest=st.dictionaries(text.map("x_".__add__), plain))
def test_texts_come_back_from_arrow(texts: list[str], model: str | None, rest: dict[str, Any]):
    metadata = {"extra_json": msgspec.json.encode(rest)} | ({} if model is None else {"model": model.encode()})
    table = pa.table({"input": pa.array(texts, pa.string())}).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    body = rest | {"input": texts} | ({} if model is None else {"model": model})
    assert arrow.decode(sink.getvalue().to_pybytes()) == body


def test_every_endpoint_that_takes_a_body_has_formats():
    assert set(ENDPOINTS) == EXPOSED - {"/health", "/ready", "/metrics", "/openapi.json", "/v1/models"}
    assert all(media_types(path) for path in ENDPOINTS)
    assert media_types("/v1/models") == []


def test_both_schemas_have_the_same_fields_in_the_same_order():
    for message in api_pb2.DESCRIPTOR.message_types_by_name.values():
        assert [field.number for field in message.fields] == list(range(1, len(message.fields) + 1))
        for field in message.fields:
            name = "".join(word.capitalize() for word in field.name.split("_"))
            assert hasattr(getattr(api_generated, message.name), name), (message.name, field.name)


def test_a_client_s_generated_code_reads_an_answer():
    path = "/v1/chat/completions"
    message = api_pb2.ChatCompletion.FromString(write(Format.protobuf, CHAT, path))
    assert (message.choices[0].message.content, message.choices[0].stop_token) == ("Grüße", 151645)
    assert (message.usage.completion_tokens, message.usage.HasField("completion_tokens")) == (0, True)
    assert msgspec.json.decode(message.extra_json) == {"metrics": {"queue_time_ms": 1.5}}
    table = api_generated.ChatCompletion.GetRootAs(write(Format.flatbuffers, CHAT, path))
    assert (table.Id(), table.Created(), table.ChoicesLength()) == (b"chatcmpl-1", 1_790_000_000, 1)
    choice = table.Choices(0)
    assert (choice.Message().Content().decode(), choice.StopToken()) == ("Grüße", 151645)
    assert (choice.Logprobs().Content(0).Logprob(), list(choice.Logprobs().Content(0).BytesAsNumpy())) == (-0.5, [71])
    assert (table.Usage().CompletionTokens(), table.SystemFingerprint()) == (0, None)


def test_a_client_s_generated_code_writes_a_request():
    import flatbuffers

    builder = flatbuffers.Builder()
    model, role = builder.CreateString("demo"), builder.CreateSharedString("user")
    messages = []
    for _ in range(2):
        api_generated.MessageStart(builder)
        api_generated.MessageAddRole(builder, role)
        messages.append(api_generated.MessageEnd(builder))
    api_generated.ChatCompletionRequestStartMessagesVector(builder, 2)
    for place in messages:
        builder.PrependUOffsetTRelative(place)
    vector = builder.EndVector()
    api_generated.ChatCompletionRequestStart(builder)
    api_generated.ChatCompletionRequestAddModel(builder, model)
    api_generated.ChatCompletionRequestAddMessages(builder, vector)
    api_generated.ChatCompletionRequestAddTemperature(builder, 0.0)
    builder.Finish(api_generated.ChatCompletionRequestEnd(builder))
    body = {"model": "demo", "messages": [{"role": "user"}] * 2, "temperature": 0.0}
    shape = shape_of("ChatCompletionRequest")
    assert flatbuffer.decode(bytes(builder.Output()), shape, 1000) == body
    request = api_pb2.ChatCompletionRequest(model="demo", messages=[api_pb2.Message(role="user")] * 2, temperature=0)
    assert protobuf.decode(request.SerializeToString(), shape) == body


@pytest.mark.parametrize("is_text", [False, True])
def test_embeddings_are_packed_floats(is_text: bool):
    body = embeddings(is_text)
    packed = [struct.pack("<3f", *vector) for vector in VECTORS]
    for format in (Format.messagepack, Format.protobuf, Format.flatbuffers, Format.arrow):
        raw = write(format, body, EMBEDDINGS)
        assert all(vector in raw for vector in packed), format
    found = msgspec.msgpack.decode(write(Format.messagepack, body, EMBEDDINGS))
    assert [item["embedding"] for item in found["data"]] == packed
    message = api_pb2.EmbeddingList.FromString(write(Format.protobuf, body, EMBEDDINGS))
    assert [list(item.embedding) for item in message.data] == [pytest.approx(vector) for vector in VECTORS]
    vector = api_generated.EmbeddingList.GetRootAs(write(Format.flatbuffers, body, EMBEDDINGS)).Data(1)
    assert vector.EmbeddingAsNumpy().tobytes() == packed[1]
    table = pa.ipc.open_stream(write(Format.arrow, body, EMBEDDINGS)).read_all()
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    assert table["index"].to_pylist() == [0, 1]
    assert table["embedding"].to_pylist()[0] == VECTORS[0]
    assert table.schema.metadata[b"model"] == b"demo"
    assert msgspec.json.decode(table.schema.metadata[b"usage"]) == body["usage"]


def test_what_are_no_vectors_of_one_length_is_no_arrow():
    body = embeddings(False)
    body["data"][1]["embedding"] = [1.0]
    with pytest.raises(Malformed):
        arrow.encode(body)
    assert protobuf.decode(protobuf.encode(body, shape_of("EmbeddingList")), shape_of("EmbeddingList"))["data"][1][
        "embedding"
    ] == [1.0]


def test_a_field_named_twice_is_refused():
    request = api_pb2.CompletionRequest(prompt="a", prompt_texts=["b"])
    with pytest.raises(Malformed, match="twice"):
        protobuf.decode(request.SerializeToString(), shape_of("CompletionRequest"))
    request = api_pb2.CompletionRequest(model="a", extra_json='{"model": "b"}')
    with pytest.raises(Malformed, match="twice"):
        protobuf.decode(request.SerializeToString(), shape_of("CompletionRequest"))
