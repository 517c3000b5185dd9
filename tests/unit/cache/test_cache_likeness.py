from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UserError
from conf.schema.cache import CacheKind, CacheSpec
from conf.schema.semantic import SemanticSpec
from serve.cache.likeness import Likeness, likeness, numbers

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def user(content: object, **more: object) -> dict[str, object]:
    return {"role": "user", "content": content, **more}


BASE: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "system", "content": "Be brief"}, user("Where is my parcel?")],
    "temperature": 0,
}


def of(changes: dict[str, Any], spec: SemanticSpec | None = None, route: str = CHAT, tenant: str | None = "a") -> Any:
    body = json.dumps({**BASE, **changes}).encode()
    return likeness(route, body, spec or SemanticSpec(), fingerprint="f", tenant=tenant)


def group(changes: dict[str, Any], **options: Any) -> str:
    found = of(changes, **options)
    assert isinstance(found, Likeness)
    return found.group


def test_the_last_user_message_may_differ_and_nothing_else():
    base = group({})
    worded = {"messages": [BASE["messages"][0], user("My parcel, where is it?")]}
    assert group(worded) == base
    assert group({"user": "somebody", "stream": True, "n": 1}) == base
    others = [
        {"messages": [{"role": "system", "content": "Be long"}, BASE["messages"][1]]},
        {"messages": [BASE["messages"][1]]},
        {"messages": [BASE["messages"][0], user("Hi"), {"role": "assistant", "content": "Hi"}, BASE["messages"][1]]},
        {"messages": [BASE["messages"][0], user("Where is my parcel?", name="Anna")]},
        {"model": "other"},
        {"max_tokens": 5},
        {"stop": ["x"]},
        {"response_format": {"type": "json_object"}},
        {"unheard_of": 1},
    ]
    assert len({base, *(group(other) for other in others), group({}, tenant="b")}) == len(others) + 2


def test_a_part_of_text_is_a_text():
    parts = {"messages": [BASE["messages"][0], user([{"type": "text", "text": "Where?"}])]}
    assert (of(parts).text, of(parts).group) == ("Where?", group({}))


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"messages": [user("Hi"), {"role": "tool", "content": "5", "tool_call_id": "1"}, user("And?")]},
        {"messages": [user("Hi"), {"role": "assistant", "tool_calls": [{"id": "1"}]}, user("And?")]},
        {"messages": [user("Hi"), {"role": "assistant", "content": "Hel"}]},
        {"messages": [{"role": "system", "content": "Hi"}]},
        {"messages": []},
        {"messages": None},
        {"messages": [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]},
        {"messages": [user([{"type": "text", "text": "a", "more": 1}])]},
        {"messages": [user(["a"])]},
        {"messages": [user(None)]},
        {"messages": [user(" \n")]},
        {"messages": [user("x" * 1001)]},
        {"echo": True},
        {"prompt_logprobs": 0},
        {"return_token_ids": True},
    ],
)
def test_what_only_an_equal_request_may_share(changes: dict[str, Any]):
    assert of(changes) is None


def test_a_prompt_is_a_text_and_a_list_of_prompts_is_none():
    asked = {"messages": None, "prompt": "Where?"}
    assert of(asked, route=COMPLETIONS).text == "Where?"
    assert of({**asked, "prompt": "When?"}, route=COMPLETIONS).group == of(asked, route=COMPLETIONS).group
    for prompt in (["Where?"], [1, 2], 5, None, ""):
        assert of({**asked, "prompt": prompt}, route=COMPLETIONS) is None
    assert of({"messages": None, "input": "Where?"}, route="/v1/embeddings") is None


@pytest.mark.parametrize(
    "one,other",
    [
        ("Cancel order KX-48213", "Cancel order KX-48214"),
        ("Cancel order KX-48213", "Cancel order KZ-48213"),
        ("Cancel order KX-48213", "Cancel the order"),
        ("What is 5 minus 3?", "What is 3 minus 5?"),
        ("Is it 5 degrees?", "Is it -5 degrees?"),
        ("It costs $5", "It costs €5"),
        ("Take .5", "Take 5"),
        ("5' long", '5" long'),
        ("x² apples", "x³ apples"),
        ("½ a cup", "a cup"),
        ("我要退三件", "我要退四件"),
    ],
)
def test_texts_with_other_numbers_are_never_alike(one: str, other: str):
    first, second = ({"messages": [user(text)]} for text in (one, other))
    assert group(first) != group(second)
    free = SemanticSpec(numbers=False)
    assert group(first, spec=free) == group(second, spec=free)


def test_a_sentences_end_is_no_part_of_a_number():
    assert numbers("Order KX-48213, please! I paid 129.90.") == numbers("I ask for KX-48213: it was 129.90") != []


@given(st.lists(st.text(min_size=1), max_size=8), st.integers(0, 7), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_changed_number_changes_the_group(words: list[str], place: int, one: int, other: int):
    texts = [" ".join([*words[:place], str(number), *words[place:]]) for number in (one, other)]
    assert (numbers(texts[0]) == numbers(texts[1])) == (one == other)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"threshold": 0.0}, "cache.semantic.threshold must be in (0, 1], got 0.0"),
        ({"threshold": float("nan")}, "cache.semantic.threshold must be in (0, 1], got nan"),
        ({"timeout_s": 0.0}, "cache.semantic.timeout_s must be > 0 and finite, got 0.0"),
        ({"max_text_chars": 0}, "cache.semantic.max_text_chars must be >= 1, got 0"),
        ({"max_entries": 0}, "cache.semantic.max_entries must be >= 1, got 0"),
        ({"url": "redis://host"}, "cache.semantic.url must be http://"),
        ({"url": "http://"}, "cache.semantic.url must be http://"),
        ({"url": "http://host:99999999"}, "cache.semantic.url must be http://"),
        ({"url": "http://me:secret@host"}, "cache.semantic.url must hold no password"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(values: dict[str, Any], message: str):
    with pytest.raises(UserError) as raised:
        SemanticSpec(**values)
    assert str(raised.value).startswith(message)
    assert "secret" not in str(raised.value)


def test_it_needs_a_place_for_answers():
    with pytest.raises(UserError, match=r"cache\.semantic\.enabled needs cache\.kind=memory"):
        CacheSpec(semantic=SemanticSpec(enabled=True))
    CacheSpec(kind=CacheKind.redis, semantic=SemanticSpec(enabled=True))
