"""The lines of OpenAI Batch files that ask."""

from __future__ import annotations

import json
from typing import Any

import pytest
from any_json import BODIES, JSON
from conftest import SHARED_DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch.openai_request import CHAT, COMPLETIONS, EMBEDDINGS, BatchRequest, parse_request, task_of
from serve.engine.errors import RequestRejected

USER = {"role": "user", "content": "q"}
NEEDED = {CHAT: {"messages": [USER]}, COMPLETIONS: {"prompt": "p"}, EMBEDDINGS: {"input": "i"}}
DEFAULTS = SamplingSpec(max_tokens=99, temperature=0.5, stop=["END"])


def line(url: str = CHAT, **body: Any) -> dict[str, Any]:
    return {"custom_id": "c", "method": "POST", "url": url, "body": {**NEEDED[url], **body}}


def parse(url: str = CHAT, **body: Any) -> BatchRequest:
    return parse_request(line(url, **body), DEFAULTS, task_of(url))


def rejection(row: dict[str, Any], task: Task = Task.generate) -> tuple[str, str]:
    with pytest.raises(RequestRejected) as caught:
        parse_request(row, DEFAULTS, task)
    assert "\n" not in caught.value.message
    return caught.value.error, caught.value.message


def changed(url: str = CHAT, **body: Any) -> dict[str, Any]:
    got = parse(url, **body).sampling
    return {k: getattr(got, k) for k in SamplingSpec.__slots__ if getattr(got, k) != getattr(DEFAULTS, k)}


def test_a_chat_line_is_its_messages_and_the_jobs_sampling() -> None:
    got = parse(model="gpt-4o", user="someone", max_tokens=None)
    assert got == BatchRequest(
        custom_id="c",
        url=CHAT,
        messages=[USER],
        prompt=None,
        sampling=DEFAULTS,
        model="gpt-4o",
        encoding_format="float",
    )


def test_a_file_made_for_openai_parses() -> None:
    path = SHARED_DATA / "aibrix_sample_job_input.jsonl"
    if not path.exists():
        pytest.skip("the folder of real workloads, ../shared/data, is absent")
    rows = [json.loads(text) for text in path.read_text().splitlines() if text.strip()]
    got = [parse_request(row, SamplingSpec(), Task.generate) for row in rows]
    assert [request.custom_id for request in got] == [row["custom_id"] for row in rows]
    assert {(request.model, request.sampling.max_tokens) for request in got} == {("gpt-3.5-turbo-0125", 1000)}


@pytest.mark.parametrize(
    "body, sampling",
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 8, "max_tokens": 7}, {"max_tokens": 8}),
        ({"max_tokens": 16.0}, {"max_tokens": 16}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_p": 0.9, "top_k": 5, "min_p": 0.1}, {"top_p": 0.9, "top_k": 5, "min_p": 0.1}),
        ({"top_k": -1}, {}),
        ({"n": 3, "seed": -(2**63)}, {"n": 3, "seed": -(2**63)}),
        ({"presence_penalty": -1, "frequency_penalty": 2}, {"presence_penalty": -1.0, "frequency_penalty": 2.0}),
        ({"repetition_penalty": 1.1, "ignore_eos": True}, {"repetition_penalty": 1.1, "ignore_eos": True}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"stop": []}, {"stop": []}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": '{"type": "object"}'}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": None}}}},
            {"json_schema": '{"const": null}'},
        ),
        ({"structured_outputs": {"json": {"type": "array"}}}, {"json_schema": '{"type": "array"}'}),
        ({"structured_outputs": {"json": '{"type":"array"}', "regex": None}}, {"json_schema": '{"type": "array"}'}),
        ({"structured_outputs": {"json_object": True}}, {"json_schema": '{"type": "object"}'}),
        ({"structured_outputs": {"regex": "a+", "json_object": False}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"guided_json": {"type": "object"}}, {"json_schema": '{"type": "object"}'}),
        ({"guided_regex": "a+", "guided_choice": None}, {"regex": "a+"}),
        ({"guided_choice": ["a"]}, {"choice": ["a"]}),
        ({"stream": False, "tools": [], "n": 1, "logit_bias": {}, "skip_special_tokens": True}, {}),
        ({"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "add_special_tokens": False}, {}),
    ],
)
def test_what_a_body_names_replaces_the_jobs_sampling(body: dict[str, Any], sampling: dict[str, Any]) -> None:
    assert changed(**body) == sampling


def test_completions_differ_in_logprobs_and_prompt() -> None:
    assert changed(COMPLETIONS, logprobs=3, add_special_tokens=True) == {"logprobs": 3}
    assert parse(COMPLETIONS).messages is None
    for given_, kept in (("p", "p"), ([1, 2], [1, 2]), (["p"], "p"), ([[1, 2]], [1, 2])):
        assert parse(COMPLETIONS, prompt=given_).prompt == kept
        assert parse(EMBEDDINGS, input=given_).prompt == kept


def test_a_body_can_take_back_what_the_job_asks() -> None:
    defaults = SamplingSpec(json_schema="{}", logprobs=2)
    row = line(response_format={"type": "text"}, logprobs=False)
    assert parse_request(row, defaults, Task.generate).sampling == SamplingSpec()
    row = line(structured_outputs={"choice": ["a"]})
    assert parse_request(row, defaults, Task.generate).sampling == SamplingSpec(choice=["a"], logprobs=2)


def test_an_embedding_has_an_encoding() -> None:
    assert parse(EMBEDDINGS).encoding_format == "float"
    assert parse(EMBEDDINGS, encoding_format="base64").encoding_format == "base64"
    assert parse(EMBEDDINGS).sampling is DEFAULTS


def test_lines_that_name_nothing_share_the_jobs_sampling() -> None:
    assert parse(model="x", temperature=None).sampling is DEFAULTS


@pytest.mark.parametrize(
    "message, kept",
    [
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        ({"role": "user", "content": ""}, ""),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, None),
    ],
)
def test_a_messages_content_is_text(message: dict[str, Any], kept: str | None) -> None:
    got = parse(messages=[message]).messages
    assert got is not None
    assert got[0].get("content") == kept
    assert "content" in message  # the row is left as it was


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"custom_id": None}, "bad_request", "custom_id is missing"),
        ({"custom_id": ""}, "bad_request", "custom_id must be text"),
        ({"custom_id": 5}, "bad_request", "custom_id must be text, not empty, this is a number"),
        ({"method": None}, "bad_request", "method is missing"),
        ({"method": "GET"}, "bad_request", "method must be POST, this is 'GET'"),
        ({"url": "/v1/responses"}, "unsupported", "/v1/completions"),
        ({"url": "/v1/re\nrank" * 99}, "unsupported", "\\n"),
        ({"url": EMBEDDINGS}, "unsupported", "needs task=embed, the job's is generate"),
        ({"body": None}, "bad_request", "body is missing"),
        ({"body": []}, "bad_request", "body must be an object, this is a list"),
        ({"body": "{}"}, "bad_request", "body must be an object, this is text"),
    ],
)
def test_a_line_of_another_shape_is_rejected(change: dict[str, Any], error: str, says: str) -> None:
    got, message = rejection({**line(), **change})
    assert (got, says in message) == (error, True), message


@pytest.mark.parametrize(
    "body, error, says",
    [
        ({"max_tokens": 0}, "bad_request", "body.max_tokens must be >= 1, got 0"),
        ({"max_completion_tokens": 0}, "bad_request", "body.max_tokens must be >= 1, got 0"),
        ({"max_tokens": 2**31}, "bad_request", "body.max_tokens must be a whole number of 32 bits"),
        ({"max_tokens": True}, "bad_request", "this is true or false"),
        ({"max_tokens": "7"}, "bad_request", "this is text"),
        ({"max_tokens": 1.5}, "bad_request", "body.max_tokens"),
        ({"temperature": float("nan")}, "bad_request", "body.temperature must be a finite number"),
        ({"temperature": float("-inf")}, "bad_request", "body.temperature must be a finite number"),
        ({"temperature": 10**400}, "bad_request", "body.temperature must be a finite number"),
        ({"temperature": -1}, "bad_request", "body.temperature must be >= 0"),
        ({"top_p": 0}, "bad_request", "body.top_p"),
        ({"presence_penalty": 3}, "bad_request", "body.presence_penalty"),
        ({"n": 0}, "bad_request", "body.n"),
        ({"n": 2, "temperature": 0}, "bad_request", "body.temperature > 0"),
        ({"seed": 2**63}, "bad_request", "body.seed must be a whole number of 64 bits"),
        ({"stop": ["a", ""]}, "bad_request", "body.stop"),
        ({"stop": {"a": 1}}, "bad_request", "body.stop"),
        ({"logprobs": 1}, "bad_request", "body.logprobs must be true or false"),
        ({"top_logprobs": 2}, "bad_request", "body.top_logprobs needs body.logprobs=true"),
        ({"logprobs": True, "top_logprobs": -1}, "bad_request", "body.logprobs must be >= 0"),
        ({"response_format": "json"}, "bad_request", "body.response_format must be an object"),
        ({"response_format": {}}, "unsupported", "body.response_format must have type"),
        ({"response_format": {"type": ["text"]}}, "unsupported", "body.response_format must have type"),
        ({"response_format": {"type": "structural_tag"}}, "unsupported", "body.response_format"),
        ({"response_format": {"type": "json_schema"}}, "bad_request", "body.response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": None}}},
            "bad_request",
            "body.response_format.json_schema.schema must be a JSON schema",
        ),
        ({"guided_json": {"const": float("nan")}}, "bad_request", "body.guided_json must be a JSON schema"),
        ({"structured_outputs": {"json": "schema.json"}}, "bad_request", "must be a JSON schema"),
        ({"structured_outputs": {"json": "/etc/passwd"}}, "bad_request", "must be a JSON schema"),
        ({"structured_outputs": {"json": "[" * 100_000}}, "bad_request", "must be a JSON schema"),
        ({"structured_outputs": {"grammar": "x"}}, "unsupported", "'grammar' is not supported"),
        ({"structured_outputs": {"choice": []}}, "bad_request", "body.structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "bad_request", "an answer has one form"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "bad_request", "an answer has one form"),
        ({"guided_grammar": "x"}, "unsupported", "'guided_grammar'"),
        ({"tools": [{"type": "function"}]}, "unsupported", "'tools' is not supported"),
        ({"tool_choice": "required"}, "unsupported", "'tool_choice' is not supported"),
        ({"stream": True}, "unsupported", "'stream' is not supported"),
        ({"logit_bias": {"1": 1}}, "unsupported", "'logit_bias' is not supported"),
        ({"skip_special_tokens": False}, "unsupported", "'skip_special_tokens'"),
        ({"add_special_tokens": True}, "unsupported", "'add_special_tokens'"),
        ({"reasoning_effort": "low"}, "unsupported", "'reasoning_effort'"),
        ({"max_token": 5}, "unsupported", "did you mean 'max_tokens'?"),
        ({"temprature": 0}, "unsupported", "did you mean 'temperature'?"),
        ({"a\nb" * 9999: 1}, "unsupported", "\\n"),
        ({"model": 5}, "bad_request", "body.model"),
        ({"messages": None}, "bad_request", "body.messages must be a list, this is null"),
        ({"messages": "q"}, "bad_request", "body.messages must be a list"),
        ({"messages": []}, "empty_prompt", "body.messages is empty"),
        ({"messages": [USER, "q"]}, "bad_request", "body.messages[1] must be an object with a role"),
        ({"messages": [{"content": "q"}]}, "bad_request", "body.messages[0] must be an object with a role"),
        ({"messages": [{"role": "user"}]}, "bad_request", "body.messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "bad_request", "this is a number"),
        ({"messages": [{"role": "user", "content": [5]}]}, "bad_request", "body.messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "bad_request", "content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "unsupported",
            "body.messages[0].content[0] is of type 'image_url': only text is supported",
        ),
    ],
)
def test_a_body_against_the_rules_is_rejected(body: dict[str, Any], error: str, says: str) -> None:
    got, message = rejection(line(**body))
    assert (got, says in message) == (error, True), message
    assert len(message) < 300


@pytest.mark.parametrize(
    "value, error",
    [
        (None, "bad_request"),
        ("", "empty_prompt"),
        ([], "empty_prompt"),
        ([""], "empty_prompt"),
        ([[]], "empty_prompt"),
        (["a", "b"], "unsupported"),
        ([[1], [2]], "unsupported"),
        ([1, "a"], "bad_request"),
        ([True], "bad_request"),
        ([-1], "bad_request"),
        ([2**31], "bad_request"),
        ([1.0], "bad_request"),
        ({"a": 1}, "bad_request"),
        (5, "bad_request"),
    ],
)
def test_a_prompt_is_one_text_or_one_list_of_token_ids(value: Any, error: str) -> None:
    assert rejection(line(COMPLETIONS, prompt=value))[0] == error
    assert rejection(line(EMBEDDINGS, input=value), Task.embed)[0] == error


@pytest.mark.parametrize("body", [{"messages": [USER]}, {"dimensions": 8}, {"temperature": 0}])
def test_an_embedding_takes_nothing_of_a_chat(body: dict[str, Any]) -> None:
    assert rejection(line(EMBEDDINGS, **body), Task.embed)[0] == "unsupported"


def outcome(row: dict[str, Any], task: Task) -> BatchRequest | RequestRejected:
    try:
        return parse_request(row, DEFAULTS, task)
    except RequestRejected as rejected:
        return rejected


@settings(max_examples=400, deadline=None)
@given(
    row=st.fixed_dictionaries({"custom_id": JSON, "url": JSON}), body=BODIES | JSON, url=st.sampled_from(list(NEEDED))
)
def test_no_json_crashes_the_parser(row: dict[str, Any], body: Any, url: str) -> None:
    for one in (
        row | {"method": "POST", "body": body},
        {"custom_id": "c", "method": "POST", "url": url, "body": body},
        line(url) | {"body": {**NEEDED[url], **body} if isinstance(body, dict) else body},
    ):
        before = json.dumps(one)
        got = outcome(one, task_of(url))
        assert json.dumps(one) == before
        if isinstance(got, RequestRejected):
            assert got.error in ("bad_request", "unsupported", "empty_prompt")
            assert "\n" not in got.message
        else:
            assert isinstance(got.sampling, SamplingSpec)
            assert (got.messages is None) != (got.prompt is None)
