from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.cache.key import CHAT, COMPLETIONS, EMBEDDINGS, ROUTES, Question, answer_fingerprint, question

CHAT_BODY: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Hello"}],
    "temperature": 0,
    "max_tokens": 8,
}


def ask(body: Any, route: str = CHAT, **options: Any) -> Question | None:
    return question(route, json.dumps(body).encode(), **{"fingerprint": "f", **options})


def key(body: Any, route: str = CHAT, **options: Any) -> str:
    found = ask(body, route, **options)
    assert found is not None
    return found.key


@pytest.mark.parametrize(
    "same",
    [
        {"user": "somebody"},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"metadata": {"run": "7"}},
        {"priority": 3},
        {"request_id": "mine"},
        {"session_id": "mine"},
        {"temperature": 0.0},
        {"temperature": -0.0},
        {"n": 1},
        {"n": None},
        {"top_p": 1},
        {"frequency_penalty": 0.0, "presence_penalty": None},
    ],
)
def test_what_does_not_change_the_answer_does_not_change_the_key(same: dict[str, Any]):
    assert key({**CHAT_BODY, **same}) == key(CHAT_BODY)


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "Hello "}]},
        {"messages": [{"role": "system", "content": "Hello"}]},
        {"model": "other"},
        {"max_tokens": 9},
        {"max_tokens": None},
        {"stop": ["."]},
        {"seed": 1},
        {"top_p": 0.5},
        {"frequency_penalty": 0.1},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"cache_salt": "s"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"not_known_yet": 1},
    ],
)
def test_what_may_change_the_answer_changes_the_key(other: dict[str, Any]):
    assert key({**CHAT_BODY, **other}) != key(CHAT_BODY)


def test_order_and_spaces_of_a_body_do_not_count_nor_the_newer_name_of_max_tokens():
    spaced = json.dumps(dict(reversed(CHAT_BODY.items())), indent=3).encode()
    assert question(CHAT, spaced, fingerprint="f") == ask(CHAT_BODY)
    newer = {name: value for name, value in CHAT_BODY.items() if name != "max_tokens"}
    assert key({**newer, "max_completion_tokens": 8}) == key(CHAT_BODY)
    assert key({**CHAT_BODY, "max_completion_tokens": 8}) != key(CHAT_BODY)


def test_services_keys_and_paths_do_not_meet():
    keys = {
        key(CHAT_BODY),
        key(CHAT_BODY, fingerprint="g"),
        key(CHAT_BODY, tenant="a"),
        key(CHAT_BODY, tenant="b"),
        key({**CHAT_BODY, "prompt": "Hello"}, COMPLETIONS),
    }
    assert len(keys) == 5


@pytest.mark.parametrize(
    "drawn",
    [
        {"temperature": None},
        {"temperature": 0.7},
        {"temperature": "0"},
        {"temperature": False},
        {"n": 2},
        {"n": True},
        {"use_beam_search": True},
        {"kv_transfer_params": {"do_remote_decode": True}},
        {"stream": "yes"},
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        {"stream": True, "return_token_ids": True},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}]},
        {"messages": "Hello"},
        {"messages": ["Hello"]},
        {"prompt_embeds": "AAAA"},
    ],
)
def test_no_answer_is_kept_that_an_equal_request_may_not_get(drawn: dict[str, Any]):
    assert ask({**CHAT_BODY, **drawn}) is None


def test_a_temperature_that_is_not_given_is_the_models_and_may_draw():
    assert ask({name: value for name, value in CHAT_BODY.items() if name != "temperature"}) is None


def test_drawn_answers_with_a_seed_are_kept_on_demand():
    drawn = {**CHAT_BODY, "temperature": 0.7, "seed": 3}
    assert ask(drawn) is None
    assert key(drawn, is_sampled_kept=True) != key({**drawn, "seed": 4}, is_sampled_kept=True)
    assert ask({**drawn, "seed": None}, is_sampled_kept=True) is None


@pytest.mark.parametrize("text", ["Hello", ["Hello", "you"], [1, 2, 3], [[1, 2], [3]]])
def test_embeddings_of_texts_and_tokens_are_kept(text: Any):
    assert ask({"model": "demo", "input": text}, EMBEDDINGS) is not None


def test_parts_of_text_are_text():
    assert ask({**CHAT_BODY, "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'{"temperature":NaN}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"1e999",
    ],
)
@pytest.mark.parametrize("route", sorted(ROUTES))
def test_what_cannot_be_read_is_the_engines_to_refuse(route: str, body: bytes):
    assert question(route, body, fingerprint="f") is None


TEXT = st.text('ab01"\\ é☃\n', max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["messages", "prompt", "input", "n", "temperature", "stream", "stream_options", "seed", "max_tokens", "other"]
)


@given(st.dictionaries(NAMES, JSON), st.sampled_from(sorted(ROUTES)))
def test_any_body_has_a_key_or_none(body: dict[str, Any], route: str):
    found = ask(body, route, is_sampled_kept=True)
    if found is not None:
        assert len(found.key) == 64
        assert ask(dict(reversed(body.items())), route, is_sampled_kept=True) == found


@given(JSON, JSON)
@example(1, True)
@example(0, False)
@example(0.0, 0)
@example("1", 1)
@example(str(2**64), 2**64)
@example(2**64, 2**64 + 1)
@example(["ab"], ["a", "b"])
@example({"a": {"b": 1}}, {"a": 1, "b": 1})
def test_bodies_that_differ_have_keys_that_differ(one: Any, other: Any):
    # as text, for Python's == takes 1 for true
    differ = json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True)
    found = ask({**CHAT_BODY, "x": one}), ask({**CHAT_BODY, "x": other})
    if None not in found:
        assert (found[0] != found[1]) == differ


def test_a_fingerprint_changes_with_whatever_decides_an_answer_not_with_its_spread(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    model, engine = ModelSpec(path=str(tmp_path)), EngineSpec()

    def of(model: ModelSpec = model, engine: EngineSpec = engine, version: str = "0.32.0", **api: str) -> str:
        return answer_fingerprint(model, engine, version, api)

    plain = of()
    assert of(engine=EngineSpec(tensor_parallel_size=2, num_replicas="3")) == plain
    adapters = [{"a": str(tmp_path), "b": str(tmp_path)}, {"b": str(tmp_path), "a": str(tmp_path)}]
    others = [
        of(version="0.33.0"),
        of(engine=EngineSpec(vllm={"quantization": "fp8"})),
        of(engine=EngineSpec(max_model_len=512)),
        of(tool_call_parser="hermes"),
        *(of(ModelSpec(path=str(tmp_path), adapters=each)) for each in adapters),
    ]
    (tmp_path / "config.json").write_text("{ }")
    assert len({plain, of(), *others}) == 8
