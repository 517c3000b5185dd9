"""The last step: answers and dead letters become files, and one line of counts goes back to the driver."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.schema.output import OutputFormat
from pipelines.batch import columns as c
from pipelines.batch.identify import failed_rows
from pipelines.batch.schema import has_empty_struct
from pipelines.storage import Location

SHOWN_ROWS = 20
"""Rows of a unit that the driver may show."""

FAILED_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("row", pa.string()),
    ]
)
"""Dead letters, whatever the input: `row` is the row as JSON, or the record's text where it could not be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sink:
    """Where files go, and how."""

    output: Location
    format: OutputFormat
    prefix: str
    answer_column: str | None
    """A column of expected answers, to count exact matches."""


def commit(table: pa.Table, sink: Sink) -> pa.Table:
    """Writes a unit of rows.

    Returns:
        One row of counts; see `unit_counts`.
    """
    if not len(table):
        return pa.table({name: pa.array([], kind) for name, kind in _COUNTS.items()})
    table = table.sort_by([(c.SOURCE, "ascending"), (c.POSITION, "ascending")])
    failed = failed_rows(table)
    bad = table.filter(failed)
    good = table.filter(pc.invert(failed))  # type: ignore[attr-defined]
    unit = unit_id(table)
    name = f"part-{unit}.{sink.format.value}"
    _put(_answers(good, sink.prefix), sink.output.join(name), sink.format)
    _put(_dead_letters(bad), sink.output.join("failed", name), sink.format)
    counts = unit_counts(unit, good, bad, sink.answer_column)
    return pa.table({name: pa.array([counts[name]], kind) for name, kind in _COUNTS.items()})


def unit_id(table: pa.Table) -> str:
    """Returns a name that depends on the unit's rows alone, so that writing it twice is harmless."""
    digest = hashlib.blake2b(digest_size=6)
    rows = zip(*(table.column(name).to_pylist() for name in (c.SOURCE, c.POSITION, c.ROW_ID)), strict=True)
    for row in sorted(rows):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


_COUNTS: dict[str, pa.DataType] = {
    "unit": pa.string(),
    "answers": pa.int64(),
    "failed": pa.int64(),
    "prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(),
    "truncated": pa.int64(),
    "matches": pa.int64(),
    "errors": pa.string(),
    "sample": pa.string(),
}


def unit_counts(unit: str, good: pa.Table, bad: pa.Table, answer_column: str | None) -> dict[str, Any]:
    """Counts a unit: rows, tokens, exact matches, errors by class, and a few rows to show."""
    errors: dict[str, list[Any]] = {}
    for error, message in zip(bad.column(c.ERROR).to_pylist(), bad.column(c.MESSAGE).to_pylist(), strict=True):
        seen = errors.setdefault(error, [0, message])
        seen[0] += 1
    outputs = good.column(c.OUTPUT)
    matches = 0
    if answer_column is not None:
        wanted = good.column(answer_column).to_pylist()
        pairs = zip(outputs.to_pylist(), wanted, strict=True)
        matches = sum(output.strip() == _text(answer) for output, answer in pairs)
    shown = good.slice(0, SHOWN_ROWS).select([*c.input_columns(good), c.SOURCE, c.POSITION, c.OUTPUT]).to_pylist()
    return {
        "unit": unit,
        "answers": len(good),
        "failed": len(bad),
        "prompt_tokens": sum(good.column(c.PROMPT_TOKENS).to_pylist()),
        "completion_tokens": sum(good.column(c.COMPLETION_TOKENS).to_pylist()),
        "truncated": good.column(c.FINISH_REASON).to_pylist().count("length"),
        "matches": matches,
        "errors": json.dumps(errors),
        "sample": json.dumps(shown, default=str, ensure_ascii=False),
    }


def _answers(good: pa.Table, prefix: str) -> pa.Table:
    own = c.input_columns(good)
    return good.select([*own, *c.ANSWER]).rename_columns([*own, *(prefix + name for name in c.ANSWER.values())])


def _dead_letters(bad: pa.Table) -> pa.Table:
    rows = [json_text(row) for row in bad.select(c.input_columns(bad)).to_pylist()]
    raw = bad.column(c.RAW).to_pylist()
    columns = [bad.column(name) for name in (c.ROW_ID, c.SOURCE, c.POSITION, c.ERROR, c.MESSAGE, c.ATTEMPTS)]
    text = [row if record is None else record for row, record in zip(rows, raw, strict=True)]
    return pa.table([*columns, pa.array(text, pa.string())], schema=FAILED_SCHEMA)


def _put(table: pa.Table, place: Location, kind: OutputFormat) -> None:
    """Writes a file, or sees to it that an empty one is not there: the unit may have been written before."""
    if not len(table):
        if place.exists():
            place.filesystem.delete_file(place.path)
        return
    buffer = io.BytesIO()
    if kind is OutputFormat.parquet:
        for index, field in enumerate(table.schema):
            if has_empty_struct(field.type):
                text = [None if value is None else json_text(value) for value in table.column(index).to_pylist()]
                table = table.set_column(index, field.name, pa.array(text, pa.string()))
        pq.write_table(table, buffer, compression="zstd")
    else:
        for row in table.to_pylist():
            buffer.write(json_text(row).encode() + b"\n")
    place.write_bytes(buffer.getvalue())


def json_text(value: Any) -> str:
    """Returns JSON; a float that is no number becomes null, what JSON lacks becomes text."""
    try:
        return json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=str, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(answer: Any) -> str | None:
    """The text that an output must equal; a whole number in a column of floats is that number."""
    if answer is None:
        return None
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    return str(answer).strip()
