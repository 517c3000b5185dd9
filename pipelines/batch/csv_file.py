"""CSV and TSV by pyarrow's parser. Every column is text: '007' is no number."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from pipelines.storage import Location

BLOCK_BYTES = 32 << 20
"""What the parser takes at a time; no record may be longer than about that."""
OPEN_QUOTE = "a quote that is never closed: all that follows it in the file is in this record"


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRecord:
    """A record that the parser could not make a row of."""

    number: int
    message: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CsvChunk:
    """A run of records."""

    table: pa.Table
    numbers: list[int]
    """Each row's record number, from 1 after the header."""
    bad: list[BadRecord]


def csv_names(location: Location, compression: str | None) -> list[str]:
    """Reads the header; an empty file has no names."""
    with location.filesystem.open_input_stream(location.path, compression=compression) as stream:
        try:
            return pacsv.open_csv(stream, **_options(location.path, lambda _: "skip")).schema.names
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                return []
            raise


def csv_chunks(location: Location, compression: str | None, names: list[str]) -> Iterator[CsvChunk]:
    """Yields the records of a file, block by block.

    Args:
        location: the file.
        compression: gzip, bz2, zstd or null.
        names: its columns.
    """
    skipped: list[BadRecord] = []

    def skip(row: Any) -> str:
        message = f"{row.actual_columns} fields where the header has {row.expected_columns}"
        skipped.append(BadRecord(number=(row.number or 1) - 1, message=message, text=row.text or ""))
        return "skip"

    options = _options(location.path, skip)
    # as bytes: a value that is no UTF-8 would fail its whole block
    options["convert_options"] = pacsv.ConvertOptions(
        column_types={name: pa.binary() for name in names}, strings_can_be_null=False
    )
    number = reported = 0
    with location.filesystem.open_input_stream(location.path, compression=compression) as opened:
        stream = _Remembering(opened)
        for batch in pacsv.open_csv(stream, **options):
            gaps = {bad.number for bad in skipped}
            numbers = []
            while len(numbers) < batch.num_rows:
                number += 1
                if number not in gaps:
                    numbers.append(number)
            table, cut_off = _without_cut_off(pa.Table.from_batches([batch]), numbers, stream)
            table, wrong = _decode(table, numbers)
            yield CsvChunk(table=table, numbers=numbers, bad=[*skipped[reported:], *wrong, *cut_off])
            reported = len(skipped)
    if skipped[reported:]:
        empty = pa.table({name: pa.array([], pa.string()) for name in names})
        yield CsvChunk(table=empty, numbers=[], bad=skipped[reported:])


class _Remembering:
    """A stream that knows its last two blocks, which hold the longest record."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._last: deque[bytes] = deque(maxlen=2)
        self.is_at_end = False

    def read(self, size: int = -1) -> bytes:
        if data := self._stream.read(size):
            self._last.append(data)
        self.is_at_end = not data
        return data

    def ends_within_quotes(self, value: bytes) -> bool:
        """Whether the last value of the file is one that its end cuts off: pyarrow takes it as it is."""
        quoted = b'"' + value.replace(b'"', b'""')
        return bool(value.strip(b'"')) and b"".join(self._last).endswith(quoted)


def _options(path: str, handler: Any) -> dict[str, Any]:
    delimiter = "\t" if ".tsv" in PurePosixPath(path.lower()).suffixes else ","
    parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=handler)
    return {"parse_options": parse, "read_options": pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)}


def _without_cut_off(table: pa.Table, numbers: list[int], stream: _Remembering) -> tuple[pa.Table, list[BadRecord]]:
    """Takes out the last row, and its number, where the end of the file cuts it off."""
    last = table.num_rows - 1
    if last < 0 or not stream.is_at_end or not stream.ends_within_quotes(table[-1][-1].as_py()):
        return table, []
    text = b",".join(table.slice(last).to_pylist()[0].values()).decode(errors="replace")
    return table.slice(0, last), [BadRecord(number=numbers.pop(), message=OPEN_QUOTE, text=text)]


def _decode(table: pa.Table, numbers: list[int]) -> tuple[pa.Table, list[BadRecord]]:
    """Turns bytes into text; takes out the rows where that fails, and their numbers."""
    text = pa.schema([(name, pa.string()) for name in table.column_names])
    try:
        return table.cast(text), []
    except pa.ArrowInvalid:
        pass
    kept, wrong = [], []
    for index, row in enumerate(table.to_pylist()):
        try:
            for value in row.values():
                value.decode()
            kept.append(index)
        except UnicodeDecodeError as error:
            raw = b",".join(row.values()).decode(errors="replace")
            wrong.append(BadRecord(number=numbers[index], message=f"not UTF-8 (byte {error.start})", text=raw))
    numbers[:] = [numbers[index] for index in kept]
    return table.take(kept).cast(text), wrong
