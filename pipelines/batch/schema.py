"""The type of each column of a file that does not say: a vote over its values."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

JSON_TEXT = pa.string()
_KINDS: dict[type, str] = {bool: "bool", int: "number", float: "number", str: "string"}
_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError)
"""What pyarrow raises when a value does not fit."""


class ColumnTypes:
    """Watches rows and decides each column's type.

    Integers and floats are one kind and become float64 where both occur. Of several kinds the most frequent wins; rows
    of another kind are bad rows, not a reason to fail. Text stays text: no dates, no numbers are guessed out of it.
    What Arrow cannot hold exactly (integers beyond 64 bits, nested values of no common type) is kept as JSON text.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, Counter[str]] = {}
        self._nested: dict[str, pa.DataType | None] = {}
        self._floats: set[str] = set()
        self._big: set[str] = set()

    def see(self, row: dict[str, Any]) -> None:
        """Counts one row."""
        for name, value in row.items():
            votes = self._kinds.get(name)
            if votes is None:
                votes = self._kinds[name] = Counter()
            if value is None:
                continue
            kind = _KINDS.get(type(value), "nested")
            votes[kind] += 1
            if type(value) is float:
                self._floats.add(name)
            elif type(value) is int and not -(2**63) <= value < 2**63:
                self._big.add(name)
            elif kind == "nested":
                self._see_nested(name, value)

    def _see_nested(self, name: str, value: Any) -> None:
        known = self._nested.get(name, pa.null())
        if known is None:
            return
        try:
            seen = pa.array([value]).type
            if seen != known:
                pair = [pa.schema([("x", known)]), pa.schema([("x", seen)])]
                known = pa.unify_schemas(pair, promote_options="permissive").field("x").type
            self._nested[name] = known
        except _MISFITS:
            self._nested[name] = None

    def schema(self) -> pa.Schema:
        """Returns the decided schema, columns in the order in which they came."""
        return pa.schema([(name, self._type(name) or JSON_TEXT) for name in self._kinds])

    def json_columns(self) -> set[str]:
        """Returns the columns that are kept as JSON text."""
        return {name for name in self._kinds if self._type(name) is None}

    def _type(self, name: str) -> pa.DataType | None:
        """The column's type; null is JSON text."""
        votes = self._kinds[name]
        if not votes:
            return pa.string()  # only nulls: text is what later rows most likely hold
        kind = max(votes, key=lambda kind: votes[kind])
        if kind == "bool":
            return pa.bool_()
        if kind == "number":
            return None if name in self._big else pa.float64() if name in self._floats else pa.int64()
        if kind == "nested":
            nested = self._nested[name]
            return None if nested is None or has_empty_struct(nested) else nested
        return pa.string()


def has_empty_struct(of: pa.DataType) -> bool:
    """Whether objects without fields occur in a type; Parquet cannot hold them."""
    if pat.is_struct(of):
        return of.num_fields == 0 or any(has_empty_struct(field.type) for field in of)
    return pat.is_nested(of) and hasattr(of, "value_type") and has_empty_struct(of.value_type)


def to_table(
    rows: list[dict[str, Any] | None], schema: pa.Schema, json_columns: set[str]
) -> tuple[pa.Table, dict[int, str]]:
    """Makes a table of rows.

    Args:
        rows: null for a record that could not be read; its columns become null.
        schema: the decided types.
        json_columns: columns kept as JSON text.

    Returns:
        The table with as many rows, and what is wrong with a row, by its index.
    """
    wrong: dict[int, str] = {}
    table = pa.table({"": pa.nulls(len(rows))}).drop_columns([""])  # keeps the number of rows where there is no column
    for field in schema:
        values = [None if row is None else row.get(field.name) for row in rows]
        if field.name in json_columns:
            values = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        table = table.append_column(field, _column(values, field, wrong))
    known = set(schema.names)
    for index, row in enumerate(rows):
        if row is not None and not known.issuperset(row):
            extra = next(name for name in row if name not in known)
            wrong.setdefault(index, f"column '{extra}' does not occur where the columns were looked up")
    return table, wrong


def _column(values: list[Any], field: pa.Field, wrong: dict[int, str]) -> pa.Array:
    kept = []
    for index, value in enumerate(values):
        if _fits(value, field.type):
            kept.append(value)
        else:
            wrong.setdefault(index, f"column '{field.name}' holds {field.type} elsewhere, here {type(value).__name__}")
            kept.append(None)
    try:
        return pa.array(kept, field.type)
    except _MISFITS:
        pass
    for index, value in enumerate(kept):
        try:
            pa.array([value], field.type)
        except _MISFITS as error:
            wrong.setdefault(index, f"column '{field.name}' cannot hold its value: {' '.join(str(error).split())}")
            kept[index] = None
    return pa.array(kept, field.type)


def _fits(value: Any, of: pa.DataType) -> bool:
    """Whether a JSON value is of a type. Arrow would read text as a list of letters and drop unknown fields."""
    if value is None:
        return True
    if pat.is_string(of):
        return type(value) is str
    if pat.is_boolean(of):
        return type(value) is bool
    if pat.is_integer(of):
        return type(value) is int
    if pat.is_floating(of):
        return type(value) in (int, float)
    if pat.is_list(of):
        return type(value) is list and all(_fits(item, of.value_type) for item in value)
    if pat.is_struct(of):
        fields = {field.name: field.type for field in of}
        return type(value) is dict and all(name in fields and _fits(v, fields[name]) for name, v in value.items())
    return pat.is_null(of) is False
