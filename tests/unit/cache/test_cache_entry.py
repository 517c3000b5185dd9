from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from serve.cache.entry import answer, events, make_entry
from serve.cache.key import CHAT, COMPLETIONS, EMBEDDINGS, ROUTES, Question

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CALL = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]}


def chat(message: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    message = message or {"role": "assistant", "content": "Hello, é", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None, **choice}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "demo"}
    return {**head, "choices": [choice], "usage": USAGE, "prompt_logprobs": None, "metrics": {"ttft_ms": 5}}


TEXT = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "demo",
    "choices": [{"index": i, "text": t, "logprobs": None, "finish_reason": "length"} for i, t in enumerate("ab")],
    "usage": USAGE,
}
VECTOR = {
    "id": "embd-1",
    "object": "list",
    "created": 1,
    "model": "demo",
    "data": [{"index": 0, "object": "embedding", "embedding": [0.1, -2e-7]}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}


def entry(route: str, body: Any) -> bytes:
    made = make_entry(route, json.dumps(body).encode())
    assert made is not None
    return made


def chunks(route: str, body: Any, has_usage: bool = False) -> list[dict[str, Any]]:
    asked = Question(key="k", route=route, is_stream=True, has_usage=has_usage)
    *lines, done, rest = events(asked, entry(route, body)).decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("route,body", [(CHAT, chat()), (COMPLETIONS, TEXT), (EMBEDDINGS, VECTOR)])
def test_an_answer_comes_back_with_a_fresh_id_and_time_and_else_the_same(route: str, body: dict[str, Any]):
    kept = entry(route, body)
    given_twice = [json.loads(answer(route, kept)) for _ in range(2)]
    fresh = ("id", "created", "metrics")
    for one in given_twice:
        assert {k: v for k, v in one.items() if k not in fresh} == {k: v for k, v in body.items() if k not in fresh}
        assert one.get("metrics") is None
        assert set(one) == set(body)
        assert one["created"] > 1
        assert one["id"].split("-")[0] == body["id"].split("-")[0]
    assert len({body["id"], *(one["id"] for one in given_twice)}) == 3


def test_digits_of_a_vector_are_kept_as_they_were_written():
    written = b'{"object":"list","data":[{"embedding":[0.10000000149011612,1E-7,-0.0]}],"model":"m"}'
    made = make_entry(EMBEDDINGS, written)
    assert made is not None
    assert b"[0.10000000149011612,1E-7,-0.0]" in answer(EMBEDDINGS, made)


@pytest.mark.parametrize(
    "route,body",
    [
        (CHAT, chat(finish_reason="abort")),
        (CHAT, chat(finish_reason=None)),
        (CHAT, chat(finish_reason="error")),
        (CHAT, {**chat(), "choices": []}),
        (CHAT, {"error": {"message": "no", "type": "server_error"}}),
        (CHAT, TEXT),
        (EMBEDDINGS, chat()),
        (COMPLETIONS, []),
    ],
)
def test_what_is_no_whole_answer_is_not_kept(route: str, body: Any):
    assert make_entry(route, json.dumps(body).encode()) is None


def test_a_stream_of_a_chat_has_role_content_and_end():
    found = chunks(CHAT, chat(logprobs=LOGPROBS))
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "Hello, é"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None, None, "stop"]
    assert [chunk["choices"][0]["logprobs"] for chunk in found] == [None, LOGPROBS, None]
    assert {(c["object"], c["model"]) for c in found} == {("chat.completion.chunk", "demo")}
    assert len({chunk["id"] for chunk in found}) == 1
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk, strict=True)


def test_a_stream_ends_with_the_usage_where_it_was_asked_for():
    *others, last = chunks(CHAT, chat(), has_usage=True)
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert not any("usage" in chunk for chunk in others)


def test_a_stream_has_tool_calls_with_their_index():
    message = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL], "reasoning": "because"}
    _, body, last = chunks(CHAT, chat(message, finish_reason="tool_calls"))
    delta = body["choices"][0]["delta"]
    assert delta == {"tool_calls": [{"index": 0, **CALL}, {"index": 1, **CALL}], "reasoning": "because"}
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    ChatCompletionChunk.model_validate(body)


def test_a_stream_of_a_completion_has_each_text_with_its_end():
    found = [chunk["choices"][0] for chunk in chunks(COMPLETIONS, TEXT)]
    assert [(one["index"], one["text"], one["finish_reason"]) for one in found] == [
        (0, "a", "length"),
        (1, "b", "length"),
    ]


def test_what_is_given_again_is_what_the_official_client_reads():
    ChatCompletion.model_validate_json(answer(CHAT, entry(CHAT, chat())))
    Completion.model_validate_json(answer(COMPLETIONS, entry(COMPLETIONS, TEXT)))
    CreateEmbeddingResponse.model_validate_json(answer(EMBEDDINGS, entry(EMBEDDINGS, VECTOR)))


GOOD = entry(CHAT, chat())


@given(
    st.binary(max_size=60)
    | st.binary(max_size=60).map(lambda data: GOOD[:1] + data)
    | st.integers(0, len(GOOD) - 1).map(lambda end: GOOD[:end])
    | st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3)).map(
        lambda at: GOOD[: at[0]] + at[1] + GOOD[at[0] + 1 :]
    ),
    st.sampled_from(sorted(ROUTES)),
)
def test_what_a_store_gives_back_is_an_answer_or_a_value_error(data: bytes, route: str):
    for give in (lambda: answer(route, data), lambda: events(Question(key="k", route=route, is_stream=True), data)):
        try:
            given_again = give()
        except ValueError:
            continue
        if not given_again.startswith(b"data: "):
            assert isinstance(json.loads(given_again), dict)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"object":"chat.completion","model":"m","choices":' + b"[" * 100_000, b"{}", b""]
)
def test_deep_nesting_in_a_store_is_a_value_error(body: bytes):
    for give in (answer, lambda route, data: events(Question(key="k", route=route, is_stream=True), data)):
        with pytest.raises(ValueError, match=r".*"):
            give(CHAT, GOOD[:1] + body)
