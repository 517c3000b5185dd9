"""The type of each column of a file that does not say: a vote over its values."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa

JSON_TEXT = pa.string()


class ColumnTypes:
    """Watches rows and decides each column's type.

    Integers and floats are one kind and become float64 where both occur. Of several kinds the most frequent wins; rows
    of another kind are bad rows, not a reason to fail. Text stays text: no dates, no numbers are guessed out of it.
    Nested values that Arrow cannot unify are kept as JSON text.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, Counter[str]] = {}
        self._nested: dict[str, pa.DataType | None] = {}
        self._floats: set[str] = set()

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
            if type(value) is float or (type(value) is int and not -(2**63) <= value < 2**63):
                self._floats.add(name)
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
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            self._nested[name] = None

    def schema(self) -> pa.Schema:
        """Returns the decided schema, columns in the order in which they came."""
        return pa.schema([(name, self._type(name)) for name in self._kinds])

    def _type(self, name: str) -> pa.DataType:
        votes = self._kinds[name]
        if not votes:
            return pa.string()  # only nulls: text is what later rows most likely hold
        kind = max(votes, key=lambda kind: votes[kind])
        if kind == "bool":
            return pa.bool_()
        if kind == "number":
            return pa.float64() if name in self._floats else pa.int64()
        if kind == "nested":
            return self._nested[name] or JSON_TEXT
        return pa.string()

    def json_columns(self) -> set[str]:
        """Returns the columns that are kept as JSON text."""
        return {name for name in self._kinds if self._nested.get(name, 0) is None and self._type(name) == JSON_TEXT}


_KINDS: dict[type, str] = {bool: "bool", int: "number", float: "number", str: "string"}


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
    columns = []
    for field in schema:
        values = [None if row is None else row.get(field.name) for row in rows]
        if field.name in json_columns:
            values = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        columns.append(_column(values, field, wrong))
    known = set(schema.names)
    for index, row in enumerate(rows):
        if row is not None and not known.issuperset(row):
            extra = next(name for name in row if name not in known)
            wrong.setdefault(index, f"column '{extra}' does not occur where the columns were looked up")
    return pa.table(columns, schema=schema), wrong


def _column(values: list[Any], field: pa.Field, wrong: dict[int, str]) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        pass
    kept = []
    for index, value in enumerate(values):
        try:
            pa.array([value], field.type)
            kept.append(value)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            wrong.setdefault(index, f"column '{field.name}' holds {field.type} elsewhere, here {type(value).__name__}")
            kept.append(None)
    return pa.array(kept, field.type)
