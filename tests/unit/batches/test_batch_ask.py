from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema.batches import BatchesSpec
from serve.batches.ask import MAX_ERRORS, asked_batch, check_lines
from serve.middleware.answer import Refused

CHAT = "/v1/chat/completions"
ASK = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}


def line(name: str = "one", **changes: Any) -> bytes:
    body = {"model": "demo", "messages": [], **changes.pop("body", {})}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body, **changes}).encode()


def codes(*lines: bytes, max_lines: int = 10) -> list[tuple[str, int | None]]:
    checked = check_lines(lines, CHAT, ["demo"], max_lines)
    return [(error["code"], error["line"]) for error in checked.errors]


@pytest.mark.parametrize("window, seconds", [("24h", 86400), ("90m", 5400), ("7d", 604800)])
def test_a_window_is_a_number_and_a_unit(window: str, seconds: float):
    asked, window_s = asked_batch({**ASK, "completion_window": window, "metadata": {"a": "b"}}, BatchesSpec())
    assert window_s == seconds
    assert asked == {**ASK, "completion_window": window, "metadata": {"a": "b"}}


@pytest.mark.parametrize(
    "body, said",
    [
        (None, "The body"),
        ({**ASK, "input_file_id": 3}, "input_file_id"),
        ({**ASK, "endpoint": "/v1/models"}, "endpoint"),
        ({**ASK, "endpoint": ["x"]}, "endpoint"),
        ({**ASK, "completion_window": "0h"}, "completion_window"),
        ({**ASK, "completion_window": "8d"}, "completion_window"),
        ({**ASK, "completion_window": 24}, "completion_window"),
        ({**ASK, "metadata": {"a": 1}}, "metadata"),
        ({**ASK, "metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({**ASK, "metadata": {"a": "x" * 513}}, "metadata"),
    ],
)
def test_what_is_no_batch_is_refused_by_its_field(body: Any, said: str):
    with pytest.raises(Refused) as refused:
        asked_batch(body, BatchesSpec())
    assert refused.value.status == 400
    assert refused.value.message.startswith(said)


def test_good_lines_have_no_errors():
    checked = check_lines([line("a"), b"\n", line("b")], CHAT, ["demo"], 2)
    assert (checked.total, checked.errors) == (2, [])


def test_each_mistake_names_its_line():
    assert codes(
        line("a"),
        line("a"),
        line("b", method="GET"),
        line("c", url="/v1/completions"),
        line("d", body={"model": "gpt"}),
        line("e", body={"stream": True}),
        b"{",
        b'{"custom_id": 1}',
        b"[" * 100_000,
    ) == [
        ("duplicate_custom_id", 2),
        ("invalid_method", 3),
        ("mismatched_endpoint", 4),
        ("model_not_found", 5),
        ("invalid_value", 6),
        ("invalid_json_line", 7),
        ("invalid_json_line", 8),
        ("invalid_json_line", 9),
    ]


def test_a_file_has_at_least_one_line_and_not_too_many():
    assert codes() == [("empty_file", None)]
    assert codes(line("a"), line("b"), line("c"), max_lines=2) == [("too_many_lines", None)]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_no_line_is_a_crash_and_errors_are_bounded(lines: list[bytes]):
    checked = check_lines(lines * 20, CHAT, ["demo"], 10_000)
    assert checked.errors
    assert len(checked.errors) <= MAX_ERRORS
