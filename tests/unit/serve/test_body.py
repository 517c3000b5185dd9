from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_service import CHAT

from conf.errors import UserError
from conf.schema.access import AccessSpec
from serve.middleware.answer import Refused, refuse_with
from serve.middleware.body import admit

SPEC = AccessSpec(max_tokens=1000, max_json_depth=8, max_sequences=100)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def refusal(body: Any, spec: AccessSpec = SPEC, path: str = CHAT) -> str | None:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    with pytest.raises(Refused) as caught:
        admit(raw, path, spec, 0)
    assert caught.value.status in (400, 404)
    return caught.value.code


def depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth, children), default=0)


@given(body=st.dictionaries(st.text().map("x_".__add__), plain, max_size=5), limit=st.integers(1, 6))
def test_a_body_is_refused_just_when_it_is_too_deep(body: dict, limit: int):
    spec = AccessSpec(max_json_depth=limit)
    raw = msgspec.json.encode(body)
    if depth(body) > limit:
        assert refusal(raw, spec, "/tokenize") == "json_too_deep"
        return
    admitted = admit(raw, "/tokenize", spec, 0)
    assert (admitted.raw, admitted.body) == (raw, msgspec.json.decode(raw))


@given(raw=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_admitted_or_refused(raw: bytes):
    status = 200
    try:
        admit(raw, CHAT, SPEC, 0)
    except Refused as refused:
        status = refused.status
    assert status in (200, 400, 404)


@given(own=st.none() | st.integers(-(2**31) + 1, 2**70), floor=st.sampled_from([0, 100]))
def test_no_body_has_a_turn_before_its_class(own: int | None, floor: int):
    body = {"model": "m", "note": "{ü}"} | ({} if own is None else {"priority": own})
    admitted = admit(msgspec.json.encode(body), CHAT, AccessSpec(), floor)
    sent = msgspec.json.decode(admitted.raw)
    assert sent.get("priority", 0) == admitted.priority >= floor
    assert admitted.body == sent
    assert {name: sent[name] for name in ("model", "note")} == {"model": "m", "note": "{ü}"}
    if own is not None and floor <= own < 2**31:
        assert admitted.priority == own


def test_a_name_that_is_written_in_another_way_or_twice_is_the_same_name():
    for raw in (b'{"priority": 100, "priority": -9}', b'{"prior\\u0069ty": -9}'):
        assert msgspec.json.decode(admit(raw, CHAT, SPEC, 100).raw) == {"priority": 100, "max_completion_tokens": 1000}


def test_what_needs_no_change_goes_on_as_it_came():
    raw = b'{ "max_tokens" : 5,\n"temperature":1E0, "priority": 3 }'
    admitted = admit(raw, CHAT, SPEC, 0)
    assert (admitted.raw, admitted.priority, admitted.tokens) == (raw, 3, len(raw) // 4 + 5)


@pytest.mark.parametrize(
    "path, field",
    [
        (CHAT, "max_completion_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
        ("/v1/messages", "max_tokens"),
        ("/v1/embeddings", None),
        ("/tokenize", None),
    ],
)
def test_a_request_without_a_limit_is_given_the_services(path: str, field: str | None):
    sent = msgspec.json.decode(admit(b'{"prompt":"a","max_tokens":null}', path, SPEC, 0).raw)
    assert [name for name, value in sent.items() if value == 1000] == ([field] if field else [])


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_limit_holds_wherever_it_is_asked_for(field: str, is_nested: bool):
    def body(value: Any) -> dict:
        return {"sampling_params": {field: value}} if is_nested else {field: value}

    assert refusal(body(1001)) == "max_tokens_too_large"
    for value in (-1, True, "5", 1.0, [1]):
        assert refusal(body(value)) == "invalid_value"
    assert admit(msgspec.json.encode(body(1000)), CHAT, SPEC, 0).tokens >= 1000


@pytest.mark.parametrize(
    "body", [{"max_tokens": -5}, {"n": 0}, {"model": 7}, {"model": ".."}, {"max_output_tokens": 1001}]
)
def test_a_refusal_names_the_field_as_openai_does(body: dict):
    with pytest.raises(Refused) as caught:
        admit(msgspec.json.encode(body), CHAT, SPEC, 0)
    assert caught.value.param == next(iter(body))


async def test_the_field_stands_in_the_answer():
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    await refuse_with(send, Refused(400, "No.", code="invalid_value", param="n"))
    assert msgspec.json.decode(said[1]["body"])["error"]["param"] == "n"


@pytest.mark.parametrize(
    "body, sequences",
    [
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]], "best_of": 2}, 4),
        ({"messages": [{"role": "user", "content": "a"}] * 3, "n": 5}, 5),
        ({"messages": [[{"role": "user", "content": "a"}]] * 3}, 3),
        ({"prompt": []}, 1),
    ],
)
def test_tokens_are_reserved_for_each_answer(body: dict, sequences: int):
    body["max_tokens"] = 10
    raw = msgspec.json.encode(body)
    assert admit(raw, CHAT, SPEC, 0).tokens == len(raw) // 4 + 10 * sequences
    assert refusal(body, AccessSpec(max_sequences=sequences - 1)) == "too_many_sequences" if sequences > 1 else True


@pytest.mark.parametrize("model", ["../x", "a/../../b", "a\\..\\b", "..", "a\x00b", "a\nb", "m" * 257])
def test_the_name_of_a_model_that_can_be_none(model: str):
    assert refusal({"model": model}) == "model_not_found"


@pytest.mark.parametrize("model", ["demo", "org/model-1.5b", "/models/demo", "s3://bucket/model", "a..b", "..."])
def test_the_name_of_a_model_that_can_be_one(model: str):
    assert admit(msgspec.json.encode({"model": model}), CHAT, SPEC, 0).body["model"] == model


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_everybody_may_come_in_on_loopback(host: str):
    AccessSpec(open=True).check(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.example.org", "localhost."]
)
def test_everybody_may_not_come_in_from_outside(host: str):
    AccessSpec().check(host)
    with pytest.raises(UserError, match=r"access\.open=true needs deployment\.host to be a loopback address"):
        AccessSpec(open=True).check(host)


@pytest.mark.parametrize(
    "field, value",
    [
        *[(key, 0) for key in ("requests_per_min", "max_concurrent", "max_tokens", "max_body_bytes")],
        *[(key, -1) for key in ("tokens_per_min", "max_header_bytes", "max_json_depth", "max_sequences")],
        *[("body_timeout_s", float(value)) for value in ("0", "nan", "inf")],
    ],
)
def test_a_rule_of_the_configuration_names_key_and_value(field: str, value: float):
    with pytest.raises(UserError, match=rf"access\.{field} must be .*, got {value}"):
        AccessSpec(**{field: value})  # type: ignore[arg-type]
