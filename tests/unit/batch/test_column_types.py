"""The vote over a file's values, and what becomes of values that lost it."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.batch.schema import ColumnTypes, to_table

QUICK = settings(deadline=None, max_examples=80, database=None, derandomize=True)


def decide(rows: list[dict[str, Any]]) -> tuple[pa.Schema, set[str]]:
    types = ColumnTypes()
    for row in rows:
        types.see(row)
    return types.schema(), types.json_columns()


def column(*values: Any) -> tuple[pa.DataType, list[Any], set[int]]:
    """Returns the type, the values and the indexes of bad rows of a table of one column."""
    rows: list[dict[str, Any] | None] = [{"x": value} for value in values]
    schema, json_columns = decide([{"x": value} for value in values])
    table, wrong = to_table(rows, schema, json_columns)
    assert table.num_rows == len(values)
    return schema.field("x").type, table.column("x").to_pylist(), set(wrong)


def test_integers_stay_integers() -> None:
    assert column(1, -(2**63), 2**63 - 1) == (pa.int64(), [1, -(2**63), 2**63 - 1], set())


@pytest.mark.parametrize("values", [(1, 2.5), (2.5, 1), (1, None, 2.5)])
def test_integers_and_floats_become_floats(values: tuple) -> None:
    assert column(*values) == (pa.float64(), list(values), set())


@pytest.mark.parametrize(
    "text", ["2024-01-01", "007", "1.5", "true", "null", "", " ", "[1]", "{}", "2024-01-01T00:00Z"]
)
def test_text_stays_text(text: str) -> None:
    assert column(text, "other") == (pa.string(), [text, "other"], set())


def test_booleans_are_booleans_and_no_numbers() -> None:
    assert column(True, False, None) == (pa.bool_(), [True, False, None], set())
    assert column(True, False, 1)[1:] == ([True, False, None], {2})
    assert column(1, 2, True)[1:] == ([1, 2, None], {2})


def test_a_boolean_among_floats_is_wrong_and_not_silently_one() -> None:
    kind, values, wrong = column(1.5, 2.5, True)
    assert (kind, values, wrong) == (pa.float64(), [1.5, 2.5, None], {2})


def test_text_among_lists_of_text_is_not_taken_to_pieces() -> None:
    _, values, _ = column(["a"], ["b"], "abc")
    assert values[2] in (None, "abc", '"abc"')


@pytest.mark.parametrize(
    "values, wrong",
    [
        ((1, 2, "three"), {2}),
        (("a", "b", 3), {2}),
        (("a", "b", {"k": 1}), {2}),
        (("a", "b", ["k"]), {2}),
        (({"k": 1}, {"k": 2}, "a"), {2}),
        ((["k"], ["l"], 3), {2}),
        ((1, 2, [3]), {2}),
    ],
)
def test_a_value_of_another_kind_makes_only_its_row_bad(values: tuple, wrong: set[int]) -> None:
    _, kept, bad = column(*values)
    assert bad == wrong
    assert kept == [None if index in wrong else value for index, value in enumerate(values)]


def test_a_bad_value_is_described_on_one_line() -> None:
    schema, json_columns = decide([{"x": 1}])
    _, wrong = to_table([{"x": "s"}], schema, json_columns)
    assert wrong == {0: "column 'x' holds int64 elsewhere, here str"}


def test_an_integer_that_no_float_holds_is_bad_and_not_rounded() -> None:
    kind, values, wrong = column(1.5, 2**53 + 1)
    assert (kind, values, wrong) == (pa.float64(), [1.5, None], {1})


def test_integers_beyond_64_bits_make_their_column_json_text_so_that_no_digit_is_lost() -> None:
    assert column(1, 2**64 + 1)[1:] == (["1", "18446744073709551617"], set())


def test_an_integer_beyond_64_bits_costs_no_other_row() -> None:
    _, values, wrong = column(1, 10**30 + 1, 2)
    assert values == ["1", str(10**30 + 1), "2"]
    assert not wrong


@pytest.mark.parametrize("big", [2**63, 10**30])
@pytest.mark.parametrize("wrap", [lambda big: [big], lambda big: {"k": big}, lambda big: [{"k": [big]}]])
def test_a_big_integer_inside_a_nested_value_loses_nothing(big: int, wrap: Any) -> None:
    _, values, wrong = column(wrap(1), wrap(big))
    loaded = [json.loads(value) if isinstance(value, str) else value for value in values]
    assert loaded[0] == wrap(1)
    assert loaded[1] == wrap(big) or wrong == {1}


def test_lists_and_objects_keep_their_shape() -> None:
    assert column([1, 2], [], None)[1:] == ([[1, 2], [], None], set())
    assert column(["a"], [None])[1:] == ([["a"], [None]], set())
    assert column({"a": 1, "b": {"c": ["d"]}})[1:] == ([{"a": 1, "b": {"c": ["d"]}}], set())
    assert column([1], [1.5])[1:] == ([[1], [1.5]], set())


def test_objects_without_fields_are_no_mistake() -> None:
    _, values, wrong = column({}, {})
    assert not wrong
    assert [json.loads(value) if isinstance(value, str) else value for value in values] == [{}, {}]


def test_objects_of_different_keys_share_one_type() -> None:
    assert column({"a": 1}, {"b": "x"})[1:] == ([{"a": 1, "b": None}, {"a": None, "b": "x"}], set())


@pytest.mark.parametrize(
    "values", [([1, "a"],), ({"k": 1}, {"k": "a"}), ({"k": 1}, [1]), ([1], ["a"]), ([[1]], [{"k": "ü"}])]
)
def test_nested_values_without_a_common_type_become_json_text(values: tuple) -> None:
    kind, kept, wrong = column(*values)
    assert (kind, wrong) == (pa.string(), set())
    assert [json.loads(value) for value in kept] == list(values)
    assert all("\\u" not in value for value in kept)


def test_a_column_of_nulls_alone_is_text() -> None:
    assert column(None, None) == (pa.string(), [None, None], set())


def test_columns_come_in_the_order_in_which_they_were_seen() -> None:
    schema, _ = decide([{"b": 1}, {"a": 1, "b": 2}, {"c": None}])
    assert schema.names == ["b", "a", "c"]


def test_a_record_that_could_not_be_read_is_a_row_of_nulls() -> None:
    table, wrong = to_table([None, {"x": 1}], pa.schema([("x", pa.int64())]), set())
    assert (table.to_pylist(), wrong) == ([{"x": None}, {"x": 1}], {})


def test_rows_without_any_column_are_still_counted() -> None:
    table, wrong = to_table([None, {}, {}], pa.schema([]), set())
    assert (table.num_rows, wrong) == (3, {})


def test_a_column_that_was_not_there_when_types_were_decided_makes_its_row_bad() -> None:
    table, wrong = to_table([{"x": 1}, {"x": 2, "late": 3}], pa.schema([("x", pa.int64())]), set())
    assert table.num_rows == 2
    assert list(wrong) == [1]
    assert "'late'" in wrong[1]


def test_a_field_of_an_object_that_was_not_there_when_types_were_decided_is_not_dropped_silently() -> None:
    schema, json_columns = decide([{"x": {"a": 1}}])
    _, wrong = to_table([{"x": {"a": 1, "late": 2}}], schema, json_columns)
    assert list(wrong) == [0]


@pytest.mark.parametrize("value", ["\ud800", ["\ud800"], {"a": "\udfff"}, {"\ud800": 1}])
def test_half_a_surrogate_pair_makes_only_its_row_bad(value: Any) -> None:
    good = "fine" if isinstance(value, str) else ["fine"] if isinstance(value, list) else {"a": "fine"}
    _, values, wrong = column(good, value, good)
    assert 0 not in wrong
    assert 2 not in wrong
    loaded = [json.loads(v) if isinstance(v, str) and v != "fine" else v for v in (values[0], values[2])]
    kept = [{k: v for k, v in x.items() if v is not None} if isinstance(x, dict) else x for x in loaded]
    assert kept == [good, good]


NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
KINDS: list[st.SearchStrategy[Any]] = [
    st.integers(-(2**63), 2**63 - 1),
    NUMBERS,
    TEXT,
    st.booleans(),
    st.lists(st.integers(-1000, 1000), max_size=3),
    st.lists(TEXT, max_size=3),
    st.dictionaries(st.sampled_from("abc"), TEXT, min_size=1, max_size=3),
    st.recursive(
        TEXT | st.integers(-5, 5) | st.none() | st.booleans(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=6,
    ).filter(lambda value: value and isinstance(value, list | dict)),
]


def bare(value: Any) -> Any:
    """Drops null fields of objects: Arrow gives every object all fields."""
    if isinstance(value, dict):
        return {name: bare(part) for name, part in value.items() if part is not None}
    return [bare(part) for part in value] if isinstance(value, list) else value


@QUICK
@given(st.sampled_from(KINDS).flatmap(lambda kind: st.lists(st.none() | kind, min_size=1, max_size=12)))
def test_values_of_one_kind_come_back_equal(values: list[Any]) -> None:
    rows: list[dict[str, Any] | None] = [{"x": value} for value in values]
    schema, json_columns = decide([{"x": value} for value in values])
    table, wrong = to_table(rows, schema, json_columns)
    assert not wrong
    kept = table.column("x").to_pylist()
    if json_columns:
        kept = [None if value is None else json.loads(value) for value in kept]
    assert [bare(value) for value in kept] == [bare(value) for value in values]


SCALARS = st.none() | TEXT | st.booleans() | st.integers(-(2**65), 2**65) | st.floats()


def same(kept: Any, value: Any) -> bool:
    if isinstance(value, float) and math.isnan(value):
        return isinstance(kept, float) and math.isnan(kept)
    return kept == value and isinstance(kept, bool) == isinstance(value, bool)


@QUICK
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "ü", ""]), SCALARS), min_size=1, max_size=12))
def test_a_scalar_comes_back_equal_or_its_row_is_bad(rows: list[dict[str, Any]]) -> None:
    schema, json_columns = decide([{"key": "k", **row} for row in rows])
    table, wrong = to_table(list(rows), schema, json_columns)
    assert set(wrong) <= set(range(len(rows)))
    for index, (row, kept) in enumerate(zip(rows, table.to_pylist(), strict=True)):
        if index not in wrong:
            for name in schema.names:
                value = row.get(name)
                if name in json_columns and value is not None and not isinstance(value, str):
                    value = json.dumps(value, ensure_ascii=False)
                assert same(kept[name], value)
