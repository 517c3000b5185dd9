"""The lines of OpenAI Batch files that answer."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from pipelines.batch.openai_response import chat_body, completion_body, embedding_body, error_line, response_line
from serve.engine.protocol import Sample, TokenLogprob

LIKELY = (("é", -0.1), ("\n", float("-inf")))
DRAWN = (TokenLogprob(token="é", logprob=-0.1, top=LIKELY), TokenLogprob(token="\n", logprob=-3.0, top=LIKELY[:1]))
SAMPLES = [
    Sample(text="é\n", finish_reason="stop", completion_tokens=2, logprobs=DRAWN),
    Sample(text="b", finish_reason="length", completion_tokens=3),
]
ANSWER: dict[str, Any] = {"request_id": "r", "created": 5, "model": "demo", "samples": SAMPLES, "prompt_tokens": 4}


def reject_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the file sees."""
    return json.loads(json.dumps(body), parse_constant=reject_constant)


def test_a_chat_answer_is_openais() -> None:
    body = plain(chat_body(**ANSWER))
    got = ChatCompletion.model_validate(body, strict=True, extra="forbid")
    assert (got.id, got.created, got.model) == ("chatcmpl-r", 5, "demo")
    assert [(choice.index, choice.message.content, choice.finish_reason) for choice in got.choices] == [
        (0, "é\n", "stop"),
        (1, "b", "length"),
    ]
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens) == (4, 5, 9)
    assert got.choices[1].logprobs is None
    logprobs = got.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].bytes == [0xC3, 0xA9]
    assert [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs] == [("é", -0.1), ("\n", -9999.0)]


def test_a_completion_is_openais() -> None:
    got = Completion.model_validate(plain(completion_body(**ANSWER)), strict=True, extra="forbid")
    assert (got.id, got.object) == ("cmpl-r", "text_completion")
    assert [(choice.text, choice.finish_reason) for choice in got.choices] == [("é\n", "stop"), ("b", "length")]
    logprobs = got.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["é", "\n"], [-0.1, -3.0], [0, 1])
    # the second token drawn was not among its likely ones, and stands there nevertheless
    assert logprobs.top_logprobs == [{"é": -0.1, "\n": -9999.0}, {"\n": -3.0, "é": -0.1}]


def test_an_embedding_is_openais_in_both_encodings() -> None:
    vector = [0.5, -2.0, 0.25]
    common: dict[str, Any] = {"model": "demo", "vector": vector, "prompt_tokens": 4}
    got = CreateEmbeddingResponse.model_validate(plain(embedding_body(**common, encoding_format="float")))
    assert got.data[0].embedding == vector
    assert (got.usage.prompt_tokens, got.usage.total_tokens) == (4, 4)
    text = embedding_body(**common, encoding_format="base64")["data"][0]["embedding"]
    assert struct.unpack("<3f", base64.b64decode(text)) == tuple(vector)


def test_a_line_holds_the_answer_and_no_error() -> None:
    assert response_line("c", "r", {"a": 1}) == {
        "id": "batch_req_r",
        "custom_id": "c",
        "response": {"status_code": 200, "request_id": "r", "body": {"a": 1}},
        "error": None,
    }


@pytest.mark.parametrize("status, kind", [(400, "invalid_request_error"), (500, "server_error")])
def test_an_error_is_the_body_of_a_response(status: int, kind: str) -> None:
    error = {"message": "too long", "type": kind, "param": None, "code": "prompt_too_long"}
    assert error_line(None, "r", status, "prompt_too_long", "too long") == {
        "id": "batch_req_r",
        "custom_id": None,
        "response": {"status_code": status, "request_id": "r", "body": {"error": error}},
        "error": None,
    }
