"""Reads a split: the input's columns, and beside them who each row is and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema.data import DataFormat
from pipelines.batch import columns as c
from pipelines.batch.csv_file import csv_chunks, csv_names
from pipelines.batch.jsonl_file import lines_of, parse_line
from pipelines.batch.schema import to_table
from pipelines.batch.source import Split, compression

READ_ROWS = 1024
"""Rows that are read at a time."""


def read_split(
    split: Split, schema: pa.Schema, json_columns: frozenset[str], id_column: str | None
) -> Iterator[pa.Table]:
    """Yields a split's rows, at most ``split.rows`` of them.

    Args:
        split: what to read.
        schema: the source's columns.
        json_columns: columns that are kept as JSON text.
        id_column: the column that names a row; where null, file and position do.
    """
    readers = {
        DataFormat.parquet: _read_parquet,
        DataFormat.jsonl: _read_jsonl,
        DataFormat.openai_batch: _read_jsonl,
        DataFormat.csv: _read_csv,
    }
    left = split.rows
    for table in readers[split.format](split, schema, json_columns):
        table = table.slice(0, left)
        left -= table.num_rows
        if table.num_rows:
            yield _identified(table, split, id_column)
        if left <= 0:
            return


def _identified(table: pa.Table, split: Split, id_column: str | None) -> pa.Table:
    """Adds the row ids: the user's, or file and position (zero-padded, so that sorting restores the order)."""
    ids = [f"{split.file_id}-{number:012d}" for number in table.column(c.POSITION).to_pylist()]
    if id_column is not None:
        own = table.column(id_column).to_pylist()
        ids = [str(value) if value is not None else ids[index] for index, value in enumerate(own)]
    table = c.with_column(table, c.ROW_ID, ids)
    return c.with_column(table, c.SOURCE, [split.name] * table.num_rows)


def _read_parquet(split: Split, schema: pa.Schema, _: frozenset[str]) -> Iterator[pa.Table]:
    number = split.first
    with split.location.filesystem.open_input_file(split.location.path) as stream:
        file = pq.ParquetFile(stream)
        groups = list(range(split.start, split.end))
        for batch in file.iter_batches(batch_size=READ_ROWS, row_groups=groups):
            numbers = range(number, number + batch.num_rows)
            table, wrong = _conform(pa.Table.from_batches([batch]), schema)
            table = _sound(table, numbers)
            if wrong:
                text = batch.to_pylist()
                errors = {i: ("wrong_type", f"{split.name}: row {numbers[i]}: {wrong[i]}") for i in wrong}
                raw = {i: json.dumps(text[i], default=str, ensure_ascii=False) for i in wrong}
                table = _faulty(table, errors, raw)
            yield table
            number += batch.num_rows


def _conform(table: pa.Table, schema: pa.Schema) -> tuple[pa.Table, dict[int, str]]:
    """Gives a file's table the columns of the whole source; says which rows hold a value that has no place there."""
    arrays, wrong = [], {}
    for field in schema:
        if field.name not in table.column_names:
            arrays.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            arrays.append(column.cast(field.type))
        except pa.ArrowInvalid:
            kept = []
            for index in range(len(column)):
                try:
                    kept.append(column.slice(index, 1).cast(field.type).combine_chunks())
                except pa.ArrowInvalid as error:
                    wrong.setdefault(index, f"column '{field.name}': {' '.join(str(error).split())}")
                    kept.append(pa.nulls(1, field.type))
            arrays.append(pa.chunked_array(kept, field.type))
    return pa.table(arrays, schema=schema), wrong


def _sound(table: pa.Table, numbers: Any) -> pa.Table:
    """Adds the columns of rows with which nothing is wrong."""
    table = c.with_column(table, c.POSITION, list(numbers))
    for name in (c.ERROR, c.MESSAGE, c.RAW):
        table = c.with_column(table, name, pa.nulls(table.num_rows, c.TYPES[name]))
    return table


def _read_jsonl(split: Split, schema: pa.Schema, json_columns: frozenset[str]) -> Iterator[pa.Table]:
    records: list[tuple[int, bytes]] = []
    for number, line in enumerate(_split_lines(split), start=split.first):
        if line.strip():
            records.append((number, line))
        if len(records) == READ_ROWS:
            yield _parse(records, split, schema, json_columns)
            records = []
    if records:
        yield _parse(records, split, schema, json_columns)


def _split_lines(split: Split) -> Iterator[bytes]:
    filesystem, path = split.location.filesystem, split.location.path
    if split.end == 0:
        with filesystem.open_input_stream(path, compression=compression(path)) as stream:
            yield from lines_of(stream)
        return
    with filesystem.open_input_file(path) as stream:
        data = stream.read_at(split.end - split.start, split.start)
    yield from lines_of(pa.BufferReader(data))


def _parse(records: list[tuple[int, bytes]], split: Split, schema: pa.Schema, json_columns: frozenset[str]) -> pa.Table:
    rows: list[dict[str, Any] | None] = []
    errors: dict[int, tuple[str, str]] = {}
    is_openai = split.format is DataFormat.openai_batch
    for index, (number, line) in enumerate(records):
        try:
            row = parse_line(line)
            # beside its four fields a request may carry what is nobody's business
            rows.append({name: row.get(name) for name in schema.names} if is_openai else row)
        except ValueError as error:
            rows.append(None)
            errors[index] = ("malformed_line", f"{split.name}:{number}: {error}")
    table, wrong = to_table(rows, schema, set(json_columns))
    for index, message in wrong.items():
        errors[index] = ("wrong_type", f"{split.name}:{records[index][0]}: {message}")
    table = c.with_column(table, c.POSITION, [number for number, _ in records])
    raw = {index: records[index][1].decode(errors="replace").rstrip("\r\n") for index in errors}
    return _faulty(table, errors, raw)


def _faulty(table: pa.Table, errors: dict[int, tuple[str, str]], raw: dict[int, str]) -> pa.Table:
    every = range(table.num_rows)
    table = c.with_column(table, c.ERROR, [errors[i][0] if i in errors else None for i in every])
    table = c.with_column(table, c.MESSAGE, [errors[i][1] if i in errors else None for i in every])
    return c.with_column(table, c.RAW, [raw.get(i) for i in every])


def _read_csv(split: Split, schema: pa.Schema, _: frozenset[str]) -> Iterator[pa.Table]:
    path = split.location.path
    names = csv_names(split.location, compression(path))
    for chunk in csv_chunks(split.location, compression(path), names):
        table = _sound(_conform(chunk.table, schema)[0], chunk.numbers)
        if chunk.bad:
            nothing = pa.table([pa.nulls(len(chunk.bad), field.type) for field in schema], schema=schema)
            nothing = c.with_column(nothing, c.POSITION, [bad.number for bad in chunk.bad])
            errors = {
                index: ("malformed_line", f"{split.name}: record {bad.number}: {bad.message}")
                for index, bad in enumerate(chunk.bad)
            }
            raw = {index: bad.text for index, bad in enumerate(chunk.bad)}
            table = pa.concat_tables([table, _faulty(nothing, errors, raw)]).sort_by(c.POSITION)
        yield table
