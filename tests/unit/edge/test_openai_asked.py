"""Bodies become requests, or are refused with the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve.engine.errors import RequestRejected
from serve.engine.protocol import Completion, Sample, TokenLogprob
from serve.middleware.answer import Refused
from serve.openai.asked import Reader
from serve.openai.said import Form


class Words:
    """A renderer whose tokens are the lengths of words."""

    def text(self, messages: list[dict[str, Any]]) -> str:
        if messages[0]["role"] == "nobody":
            raise RequestRejected("chat_template", "roles must alternate")
        return " ".join(message["content"] for message in messages)

    def tokens(self, texts: list[str]) -> list[list[int]]:
        return [[len(word) for word in text.split()] for text in texts]


def reader(**own: object) -> Reader:
    words: Any = Words()
    return Reader("demo", words, words, 32, own)


def chat(own: dict[str, object] | None = None, **body: object) -> Any:
    body = {"messages": [{"role": "user", "content": "one three"}], **body}
    return reader(**own or {}).chat(json.dumps(body).encode(), "x")


def complete(**body: object) -> Any:
    return reader().completion(json.dumps(body).encode(), "x")


def test_a_chat_has_openai_s_defaults_and_the_model_s_own() -> None:
    (request,) = chat().requests
    assert request.token_ids == [3, 5]
    assert (request.sampling.temperature, request.sampling.max_tokens) == (1.0, 30)
    own = {"temperature": 0.5, "top_k": 4, "max_new_tokens": 8}
    (request,) = chat(own).requests
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.max_tokens) == (0.5, 4, 8)
    (request,) = chat(own, temperature=0.0, max_completion_tokens=9).requests
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0, 9)


def test_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "three"}]
    assert chat(messages=[{"role": "user", "content": parts}]).requests[0].token_ids == [3, 5]


def test_what_is_asked_for_arrives() -> None:
    asked = chat(
        stop="END", n=2, seed=3, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
    )
    sampling = asked.requests[0].sampling
    assert (sampling.stop, sampling.n, sampling.seed, sampling.logprobs) == (["END"], 2, 3, 2)
    assert asked.body.is_stream
    assert asked.body.has_usage
    assert chat(logprobs=True).requests[0].sampling.logprobs == 0
    assert chat().requests[0].sampling.logprobs is None


@pytest.mark.parametrize(
    "prompt, tokens",
    [("a bb", [[1, 2]]), ([4, 5], [[4, 5]]), (["a", "bb"], [[1], [2]]), ([[4], "bb"], [[4], [2]])],
)
def test_prompts_are_texts_or_tokens_one_or_several(prompt: Any, tokens: list[list[int]]) -> None:
    requests = complete(prompt=prompt).requests
    assert [request.token_ids for request in requests] == tokens
    assert len({request.id for request in requests}) == len(tokens)
    assert requests[0].sampling.max_tokens == 16


@pytest.mark.parametrize(
    "fields, status, said",
    [
        ({"model": "other"}, 404, "no such model"),
        ({"messages": []}, 400, "must hold a message"),
        ({"messages": [{"content": "x"}]}, 400, "needs a role"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, 400, "roles must alternate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "must be text"),
        ({"messages": [{"role": "user", "content": "x " * 32}]}, 400, "the context is 32 tokens; the prompt has 32"),
        ({"max_tokens": 31}, 400, "the prompt has 2 and 31 are asked for"),
        ({"max_tokens": 0}, 400, "max_tokens must be >= 1"),
        ({"temperature": -1}, 400, "temperature must be >= 0"),
        ({"temperature": "hot"}, 400, "cannot be read"),
        ({"top_logprobs": 2}, 400, "needs logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "must be in 0..20"),
        ({"tools": [{}]}, 400, "tools has no use here"),
        ({"logit_bias": {"1": 2}}, 400, "logit_bias has no use here"),
        ({"response_format": {"type": "json_object"}}, 400, "keeps no grammar"),
    ],
)
def test_what_cannot_be_answered_is_refused(fields: dict[str, Any], status: int, said: str) -> None:
    with pytest.raises(Refused) as caught:
        chat(**fields)
    assert caught.value.status == status
    assert said in caught.value.message


@pytest.mark.parametrize("prompt", [[], "", [[]], [1, "a"], [[1], 2], ["a"] * 257])
def test_no_prompts_or_too_many_are_refused(prompt: Any) -> None:
    with pytest.raises(Refused):
        complete(prompt=prompt)


def test_a_body_that_is_no_json_is_refused() -> None:
    for raw in (b"", b"{", b"[]", b'{"messages": 1}', b"\xff", b'{"prompt": ' + b"[" * 5000):
        with pytest.raises(Refused):
            reader().chat(raw, "x")


def test_answers_have_numbers_and_their_tokens_are_added_up() -> None:
    place = TokenLogprob(token="a", logprob=-0.5, top=(("b", -0.25), ("a", -0.5)))
    sample = Sample(text="a", finish_reason="stop", completion_tokens=1, logprobs=(place,))
    completions = [Completion(request_id=str(i), samples=(sample, sample), prompt_tokens=3) for i in range(2)]
    body = Form(id="i", model="demo", is_chat=False).whole(completions)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5, "b": -0.25}]
    chat_body = Form(id="i", model="demo", is_chat=True).whole(completions[:1])
    (content,) = chat_body["choices"][0]["logprobs"]["content"]
    assert content["bytes"] == [97]
    assert [other["token"] for other in content["top_logprobs"]] == ["b", "a"]
