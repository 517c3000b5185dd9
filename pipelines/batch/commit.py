"""The last step: answers and dead letters become files, and one line of counts goes back to the driver."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.schema.output import OutputFormat
from pipelines.batch import columns as c
from pipelines.batch.identify import failed_rows
from pipelines.storage import Location

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
    failed = failed_rows(table)
    bad = table.filter(failed)
    good = table.filter(pc.invert(failed))  # type: ignore[attr-defined]
    unit = unit_id(table)
    if len(good):
        _write(_answers(good, sink.prefix), sink.output.join(f"part-{unit}.{sink.format.value}"), sink.format)
    if len(bad):
        _write(_dead_letters(bad), sink.output.join("failed", f"part-{unit}.{sink.format.value}"), sink.format)
    counts = unit_counts(unit, good, bad, sink.answer_column)
    return pa.table({name: pa.array([counts[name]], kind) for name, kind in _COUNTS.items()})


def unit_id(table: pa.Table) -> str:
    """Returns a name that depends on the unit's rows alone, so that writing it twice is harmless."""
    digest = hashlib.blake2b(digest_size=6)
    for row_id in sorted(table.column(c.ROW_ID).to_pylist()):
        digest.update(row_id.encode() + b"\0")
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
        matches = sum(output.strip() == str(answer).strip() for output, answer in pairs)
    shown = good.slice(0, 20).select([*c.input_columns(good), c.ROW_ID, c.OUTPUT]).to_pylist()
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
    rows = [json.dumps(row, default=str, ensure_ascii=False) for row in bad.select(c.input_columns(bad)).to_pylist()]
    raw = bad.column(c.RAW).to_pylist()
    columns = [bad.column(name) for name in (c.ROW_ID, c.SOURCE, c.POSITION, c.ERROR, c.MESSAGE, c.ATTEMPTS)]
    text = [row if record is None else record for row, record in zip(rows, raw, strict=True)]
    return pa.table([*columns, pa.array(text, pa.string())], schema=FAILED_SCHEMA)


def _write(table: pa.Table, place: Location, kind: OutputFormat) -> None:
    buffer = io.BytesIO()
    if kind is OutputFormat.parquet:
        pq.write_table(table, buffer, compression="zstd")
    else:
        for row in table.to_pylist():
            buffer.write(json.dumps(row, default=str, ensure_ascii=False).encode() + b"\n")
    place.write_bytes(buffer.getvalue())
