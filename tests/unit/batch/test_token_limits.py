"""`data.max_tokens`: each row's own limit of answer tokens."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import small_plan

from conf.errors import UserError
from conf.schema.data import DataSpec
from conf.schema.task import Task
from pipelines.batch.prompter import token_limit
from serve.engine.errors import RequestRejected


@pytest.mark.parametrize("value,limit", [(7, 7), (7.0, 7), ("7", 7), (" 12 ", 12)])
def test_a_whole_number_is_a_limit_whatever_its_type(value: Any, limit: int) -> None:
    assert token_limit(value) == limit


@pytest.mark.parametrize(
    "value", [0, -1, 1.5, float("nan"), float("inf"), True, "many", "1e3", "٣", [], {}, 1 << 31, "9" * 5000]
)
def test_anything_else_is_a_bad_row(value: Any) -> None:
    with pytest.raises(RequestRejected, match="whole number >= 1") as caught:
        token_limit(value)
    assert caught.value.error == "bad_max_tokens"


@given(st.integers() | st.floats() | st.text() | st.booleans())
def test_no_value_crashes(value: Any) -> None:
    with suppress(RequestRejected):
        assert token_limit(value) >= 1


def test_vectors_have_no_limit() -> None:
    with pytest.raises(UserError, match=r"data\.max_tokens has no use with task=embed"):
        DataSpec(input="x", prompt="{{ q }}", max_tokens="n").check(Task.embed)


def test_a_column_that_the_table_lacks_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"q": "x", "limit": 3}\n')
    with pytest.raises(UserError, match=r"data\.max_tokens.*limits"):
        small_plan(tmp_path, data={"max_tokens": "limits"})
    assert small_plan(tmp_path, data={"max_tokens": "limit"}).decides["data.max_tokens"] == "limit"
