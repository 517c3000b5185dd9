from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.router.blocks import block_keys, prompt_of


def common(one: Sequence[Any], two: Sequence[Any]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(1, 17))
def test_two_prompts_share_as_many_keys_as_whole_blocks_at_their_beginning(one: bytes, two: bytes, size: int):
    shared = common(one, two) // size
    keys_one, keys_two = list(block_keys(one, size)), list(block_keys(two, size))
    assert len(keys_one) == len(one) // size
    assert common(keys_one, keys_two) == shared
    assert not set(keys_one[shared:]) & set(keys_two[shared:])


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5))
def test_tokens_are_compared_in_blocks_too(one: list[int], two: list[int], size: int):
    shared = common(one, two) // size
    assert common(list(block_keys(one, size)), list(block_keys(two, size))) == shared


def test_a_conversation_begins_as_it_did_a_turn_before():
    turns: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    longer = [*turns, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Why?"}]
    first, second = prompt_of({"model": "m", "messages": turns}), prompt_of({"model": "m", "messages": longer})
    assert isinstance(first, bytes)
    assert isinstance(second, bytes)
    assert second.startswith(first)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "adapter"},
        {"messages": [{"role": "system", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:1"}}]}]},
    ],
)
def test_what_parts_kv_caches_parts_prompts(other: dict[str, Any]):
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    assert prompt_of(body) != prompt_of(body | other)


def test_content_in_parts_is_the_text_in_one():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert prompt_of({"messages": [{"role": "user", "content": parts}]}) == prompt_of(
        {"messages": [{"role": "user", "content": "Hello"}]}
    )


def test_token_ids_stay_token_ids():
    assert prompt_of({"model": "m", "prompt": [1, 2, 3]}) == [1, 2, 3]
    assert prompt_of({"model": "m", "input": [[1, 2], [3]]}) == [1, 2]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "text", "\ud800", "role", "content"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["model", "messages", "prompt", "input", "tools"]), JSON))
def test_no_body_is_an_error(body: dict[str, Any]):
    list(block_keys(prompt_of(body), 4))


def test_no_depth_is_an_error():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert isinstance(prompt_of({"messages": [{"role": deep, "content": deep}], "tools": deep, "prompt": 7}), bytes)
