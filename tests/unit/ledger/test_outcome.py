"""Outcomes survive the way through bytes."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ledger.outcome import decode, encode, outcome_of, plain_outcome
from serve.engine.protocol import Completion, Outcome, Pooled, Rejection, Sample, TokenLogprob

QUICK = settings(deadline=None, max_examples=100, database=None, derandomize=True)

COUNTS = st.integers(0, 2**31)
LOGPROBS = st.floats(max_value=0, allow_nan=False)  # -inf: what a mask has ruled out
TOKENS = st.builds(
    TokenLogprob,
    token=st.text(max_size=3),
    logprob=LOGPROBS,
    top=st.lists(st.tuples(st.text(max_size=3), LOGPROBS), max_size=2).map(tuple),
)
SAMPLES = st.builds(
    Sample,
    text=st.text(max_size=20),
    finish_reason=st.sampled_from(["stop", "length"]),
    completion_tokens=COUNTS,
    logprobs=st.none() | st.lists(TOKENS, max_size=3).map(tuple),
)
OUTCOMES = st.one_of(
    st.builds(
        Completion,
        request_id=st.just("r"),
        samples=st.lists(SAMPLES, min_size=1, max_size=3).map(tuple),
        prompt_tokens=COUNTS,
    ),
    st.builds(
        Pooled,
        request_id=st.just("r"),
        vector=st.lists(st.floats(width=32), max_size=4).map(lambda v: struct.pack(f"<{len(v)}f", *v)),
        prompt_tokens=COUNTS,
    ),
    st.builds(Rejection, request_id=st.just("r"), error=st.text(max_size=5), message=st.text(max_size=20)),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(OUTCOMES)
def test_an_outcome_comes_back_as_it_was(outcome: Outcome) -> None:
    data = encode(plain_outcome(outcome))
    assert b"\n" not in data
    assert b"\r" not in data
    assert outcome_of(decode(data), "r") == outcome


def test_a_token_that_a_mask_has_ruled_out_keeps_its_infinite_logprob() -> None:
    token = TokenLogprob(token="a", logprob=-math.inf, top=(("b", -math.inf),))
    sample = Sample(text="a", finish_reason="stop", completion_tokens=1, logprobs=(token,))
    outcome = Completion(request_id="", samples=(sample,), prompt_tokens=1)
    assert outcome_of(decode(encode(plain_outcome(outcome)))) == outcome


def test_the_request_is_named_anew() -> None:
    rejection = Rejection(request_id="before", error="e", message="m")
    assert outcome_of(plain_outcome(rejection), "after") == Rejection(request_id="after", error="e", message="m")


@QUICK
@given(JSON | st.tuples(st.sampled_from(["c", "p", "r", "x"]), JSON, JSON).map(list))
def test_what_is_no_outcome_raises_a_value_error_and_nothing_else(plain: Any) -> None:
    try:
        outcome = outcome_of(plain)
    except ValueError:
        return
    assert isinstance(plain, list)
    assert type(outcome) is {"c": Completion, "p": Pooled, "r": Rejection}[plain[0]]


@pytest.mark.parametrize(
    "plain",
    [
        None,
        5,
        [],
        ["c", 1],
        ["x", 1, 2],
        ["c", 1, 5],
        ["c", 1, [["text", "stop"]]],
        ["c", 1, [["text", "stop", 1, [["token"]]]]],
        ["p", 1, "a"],
        ["p", 1, 5],
        {"c": 1},
    ],
)
def test_garbage_is_no_outcome(plain: Any) -> None:
    with pytest.raises(ValueError, match="no outcome"):
        outcome_of(plain)


@pytest.mark.parametrize("data", [b"", b"{", b'["c", 1', b"\xff", b'{"a": 1}{"b": 2}'])
def test_what_is_no_json_raises_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data)
