"""Where a unit ends: answers and dead letters become files, then the done-mark, and a line goes to the driver."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.schema.output import OutputFormat
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.answers import PREFIX
from pipelines.batch.identify import failed_rows
from pipelines.batch.openai_part import answer_lines, letter_lines
from pipelines.batch.schema import has_empty_struct
from pipelines.batch.unit import Parcel
from pipelines.ledger.folder import Folder
from pipelines.ledger.lease import lease_file
from pipelines.ledger.lengths import count_lengths
from pipelines.ledger.log import drop_log
from pipelines.ledger.mark import Mark, read_mark
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
        ("request_key", pa.string()),
        ("row", pa.string()),
    ]
)
"""Dead letters, whatever the input: `row` is the row as JSON, or the record's text where it could not be read."""

COMMITTED = pa.schema([("unit", pa.string()), ("is_done", pa.bool_()), ("mark", pa.string()), ("sample", pa.string())])
"""What the driver gets for each unit: its mark as JSON, and a few rows to show."""


class LeaseLost(Exception):
    """Another driver has taken over the output folder: this one's workers must write no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sink:
    """Where files go, and how."""

    folder: Folder
    run: str
    """Names the run; it holds the lease."""
    format: OutputFormat
    prefix: str
    answer_column: str | None
    """A column of expected answers, to count exact matches."""
    model: str
    """What the model is called, for OpenAI's shape."""
    task: Task


def commit(parcels: Iterable[Parcel], sink: Sink) -> pa.Table:
    """Writes units, one after another.

    Returns:
        A row for each; see `COMMITTED`.

    Raises:
        LeaseLost: when another driver took over.
        OSError: when a file cannot be written.
    """
    rows = [_commit(parcel, sink) for parcel in parcels]
    return pa.Table.from_pylist(rows, schema=COMMITTED)


def _commit(parcel: Parcel, sink: Sink) -> dict[str, Any]:
    folder, unit = sink.folder, parcel.unit
    if parcel.note.get("is_committed") and (mark := read_mark(folder, unit.id)) is not None:
        return {"unit": unit.id, "is_done": True, "mark": json.dumps(asdict(mark)), "sample": "[]"}
    table = parcel.table.sort_by([(c.SOURCE, "ascending"), (c.POSITION, "ascending")])
    failed = failed_rows(table)
    bad = table.filter(failed)
    good = table.filter(pc.invert(failed))  # type: ignore[attr-defined]
    if not lease_file(folder, sink.run).exists():
        raise LeaseLost(f"another driver took over {folder.root.path}")
    is_partial = bool(parcel.note["is_partial"])
    if is_partial and (mark := read_mark(folder, unit.id)) is not None and mark.fingerprint == unit.fingerprint:
        # a redrive that was stopped: the unit stays as it is, what was paid for is in the log
        return {"unit": unit.id, "is_done": False, "mark": json.dumps(asdict(mark)), "sample": "[]"}
    answers_bytes, failed_bytes = _write(good, bad, unit.id, sink)
    if unit.has_former:
        folder.drop_other_formats(unit.id)
    mark = Mark(
        unit=unit.id,
        fingerprint=unit.fingerprint,
        run=sink.run,
        answers=len(good),
        failed=len(bad),
        answers_bytes=answers_bytes,
        failed_bytes=failed_bytes,
        **parcel.note["counts"],
        **_counts(good, bad, sink.answer_column),
    )
    if not is_partial:  # the rest of it comes with the next run, which finds these answers in the log
        mark.write(folder)
        drop_log(folder, unit.id)
    sample = json.dumps(_sample(good), default=str, ensure_ascii=False)
    return {"unit": unit.id, "is_done": not is_partial, "mark": json.dumps(asdict(mark)), "sample": sample}


def _write(good: pa.Table, bad: pa.Table, unit: str, sink: Sink) -> tuple[int, int]:
    """Writes both part files of a unit; returns their sizes in bytes."""
    letters = _dead_letters(bad)
    places = sink.folder.answers(unit), sink.folder.failed(unit)
    if sink.format is OutputFormat.openai_batch:
        answered = answer_lines(good, sink.model, sink.task)
        rejected = letter_lines(letters, bad.column("custom_id").to_pylist())
        return _put_lines(answered, places[0]), _put_lines(rejected, places[1])
    answers = _answers(good, sink.prefix)
    if sink.format is OutputFormat.jsonl:
        return _put_lines(answers.to_pylist(), places[0]), _put_lines(letters.to_pylist(), places[1])
    return _put_parquet(answers, places[0]), _put_parquet(letters, places[1])


def _counts(good: pa.Table, bad: pa.Table, answer_column: str | None) -> dict[str, Any]:
    """Counts tokens, exact matches and errors by class."""
    errors: dict[str, tuple[int, str]] = {}
    for error, message in zip(bad.column(c.ERROR).to_pylist(), bad.column(c.MESSAGE).to_pylist(), strict=True):
        rows, example = errors.get(error, (0, message))
        errors[error] = (rows + 1, example)
    matches = 0
    said = next((PREFIX + name for name in ("output", "label") if PREFIX + name in good.column_names), None)
    if answer_column is not None and said is not None:
        wanted = good.column(answer_column).to_pylist()
        pairs = zip(good.column(said).to_pylist(), wanted, strict=True)
        matches = sum(output.strip() == _text(answer) for output, answer in pairs)
    return {
        "prompt_tokens": _sum(good, "prompt_tokens"),
        "completion_tokens": _sum(good, "completion_tokens"),
        "prompt_lengths": count_lengths(_column(good, "prompt_tokens")),
        "completion_lengths": count_lengths(_column(good, "completion_tokens")),
        "truncated": _column(good, "finish_reason").count("length"),
        "matches": matches,
        "errors": errors,
    }


def _column(good: pa.Table, name: str) -> list[Any]:
    return good.column(PREFIX + name).to_pylist() if PREFIX + name in good.column_names else []


def _sum(good: pa.Table, name: str) -> int:
    return sum(value or 0 for value in _column(good, name))


def _sample(good: pa.Table) -> list[dict[str, Any]]:
    said = [
        name for name in good.column_names if name in {PREFIX + n for n in ("output", "label", "score", "embedding")}
    ]
    rows = good.slice(0, SHOWN_ROWS).select([*c.input_columns(good), c.SOURCE, c.POSITION, *said]).to_pylist()
    vector = PREFIX + "embedding"
    return [{**row, vector: _beginning(row[vector])} if row.get(vector) is not None else row for row in rows]


def _beginning(vector: list[float]) -> str:
    return f"{len(vector)} numbers: {', '.join(f'{number:.4f}' for number in vector[:4])}, ..."


def _answers(good: pa.Table, prefix: str) -> pa.Table:
    own = c.input_columns(good)
    answers = [name for name in good.column_names if name.startswith(PREFIX)]
    names = [*own, *(prefix + name.removeprefix(PREFIX) for name in answers), *(prefix + n for n in c.NAMED.values())]
    return good.select([*own, *answers, *c.NAMED]).rename_columns(names)


def _dead_letters(bad: pa.Table) -> pa.Table:
    rows = [json_text(row) for row in bad.select(c.input_columns(bad)).to_pylist()]
    raw = bad.column(c.RAW).to_pylist()
    columns = [bad.column(name) for name in _LETTER]
    text = [row if record is None else record for row, record in zip(rows, raw, strict=True)]
    return pa.table([*columns, pa.array(text, pa.string())], schema=FAILED_SCHEMA)


_LETTER = (c.ROW_ID, c.SOURCE, c.POSITION, c.ERROR, c.MESSAGE, c.ATTEMPTS, c.REQUEST_KEY)


def _put_parquet(table: pa.Table, place: Location) -> int:
    """Writes a part file, or sees to it that an empty one is not there; returns its size in bytes."""
    if not len(table):
        place.delete()
        return 0
    buffer = io.BytesIO()
    for index, field in enumerate(table.schema):
        if has_empty_struct(field.type):
            text = [None if value is None else json_text(value) for value in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(text, pa.string()))
    pq.write_table(table, buffer, compression="zstd")
    place.write_bytes(buffer.getvalue())
    return buffer.tell()


def _put_lines(rows: Iterable[dict[str, Any]], place: Location) -> int:
    """As `_put_parquet`, as JSON lines."""
    data = b"".join(json_text(row).encode() + b"\n" for row in rows)
    if data:
        place.write_bytes(data)
    else:
        place.delete()
    return len(data)


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
