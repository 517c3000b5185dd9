"""What is to be read: files, their columns, and the splits that tasks read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import UserError
from conf.schema.data import DataFormat, DataSpec
from pipelines.batch.csv_file import csv_chunks, csv_names
from pipelines.batch.jsonl_file import lines_of, parse_line
from pipelines.batch.schema import ColumnTypes
from pipelines.batch.unit import Unit
from pipelines.storage import InputFile, Location, list_files

SUFFIXES: dict[DataFormat, tuple[str, ...]] = {
    DataFormat.parquet: (".parquet", ".pq"),
    DataFormat.jsonl: (".jsonl", ".ndjson", ".json"),
    DataFormat.csv: (".csv", ".tsv"),
}
OPENAI_SCHEMA = pa.schema([(name, pa.string()) for name in ("custom_id", "method", "url", "body")])
"""Columns of an OpenAI Batch file; the body is kept as JSON text."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
TYPED_BYTES = 256 << 20
"""Text read to decide the columns' types; lines after that are counted only."""
SPLIT_BYTES = 32 << 20
"""Text that a split may hold, as far as its lines allow: a unit of long rows must fit into memory many times."""
MARK_LINES = 64
"""Lines between two places where a split may begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A part of one file, read by one task."""

    location: Location
    name: str
    """The file's name; with a record's number it makes the row id."""
    file_id: str
    """Sixteen hex digits made of the name."""
    format: DataFormat
    start: int
    """First byte (JSONL) or first row group (Parquet)."""
    end: int
    """One past the last byte or row group; 0 is all of the file."""
    first: int
    """Number of the first record, from 1; of JSONL the line's."""
    rows: int
    """Records in it, malformed ones included, blank lines not."""
    fingerprint: str = ""
    """Of its content; of what is not read to be counted, of the file's size and time of writing."""

    def units(self, unit_rows: int, schema: pa.Schema) -> list[Unit]:
        """Cuts it into units: the same records make the same units, whatever reads them."""
        units = []
        for start in range(0, self.rows, unit_rows):
            rows = min(unit_rows, self.rows - start)
            name = hashlib.blake2b(f"{self.file_id}:{self.first}:{start}".encode(), digest_size=6)
            content = hashlib.blake2b(f"{self.fingerprint}:{rows}:{schema}".encode(), digest_size=8)
            units.append(Unit(id=name.hexdigest(), fingerprint=content.hexdigest(), rows=rows))
        return units


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """All that is to be read."""

    splits: list[Split]
    schema: pa.Schema
    json_columns: frozenset[str]

    @property
    def rows(self) -> int:
        """Records, malformed ones included."""
        return sum(split.rows for split in self.splits)

    def first(self, limit: int | None) -> Source:
        """Returns the source cut after ``limit`` records."""
        if limit is None or limit >= self.rows:
            return self
        kept = []
        for split in self.splits:
            if limit <= 0:
                break
            kept.append(replace(split, rows=min(split.rows, limit)))
            limit -= split.rows
        return replace(self, splits=kept)


def open_source(spec: DataSpec) -> Source:
    """Looks at the input: which files, which columns, how many records.

    Args:
        spec: the data node.

    Raises:
        UserError: when something is missing, unreadable, of no known format, or empty.
    """
    found: list[tuple[Location, InputFile, DataFormat]] = []
    seen: set[tuple[str, str]] = set()
    for uri in spec.inputs:
        wanted = _suffixes(spec.format)
        place, files = list_files(uri, _with_compressions(wanted))
        for file in files:
            if (place.filesystem.type_name, file.path) not in seen:  # two inputs may name one file
                seen.add((place.filesystem.type_name, file.path))
                found.append((replace(place, path=file.path), file, _format(spec, file)))
    names: set[str] = set()
    splits: list[Split] = []
    schemas: list[pa.Schema] = []
    types = ColumnTypes()
    for place, file, kind in found:
        # two inputs may hold files of one name; of the second the whole path tells them apart
        name = file.name if file.name not in names else file.path
        names.add(name)
        whole = Split(
            location=place,
            name=name,
            file_id=hashlib.blake2b(name.encode(), digest_size=8).hexdigest(),
            format=kind,
            start=0,
            end=0,
            first=1,
            rows=0,
            fingerprint=f"{file.size_bytes}:{file.modified_ns}",
        )
        try:
            splits.extend(_split(whole, schemas, types))
        except UserError:
            raise
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"data.input={file.path}: cannot be read: {' '.join(str(error).split())[:400]}") from error
    if not any(split.rows for split in splits):
        raise UserError(f"data.input={spec.input}: it holds no rows")
    splits = [split for split in splits if split.rows]
    if spec.format is DataFormat.openai_batch:
        return Source(splits=splits, schema=OPENAI_SCHEMA, json_columns=frozenset({"body"}))
    try:
        schema = pa.unify_schemas([*schemas, types.schema()], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"data.input={spec.input}: the files' columns do not fit together: {error}") from error
    return Source(splits=splits, schema=schema, json_columns=frozenset(types.json_columns()))


def pack(source: Source, rows_per_split: int) -> Source:
    """Joins neighbouring splits of a file until each holds about ``rows_per_split`` records.

    Whatever is added to the end of a file, the splits before the last one stay the same.
    """
    packed: list[Split] = []
    for split in source.splits:
        last = packed[-1] if packed else None
        if (
            last is not None
            and last.location.path == split.location.path
            and last.end == split.start
            and last.end
            and _fits(last, split, rows_per_split)
            and (last.format not in (DataFormat.jsonl, DataFormat.openai_batch) or last.end - last.start < SPLIT_BYTES)
        ):
            both = hashlib.blake2b(f"{last.fingerprint}{split.fingerprint}".encode(), digest_size=8).hexdigest()
            packed[-1] = replace(last, end=split.end, rows=last.rows + split.rows, fingerprint=both)
        else:
            packed.append(split)
    return replace(source, splits=packed)


def _fits(last: Split, split: Split, rows: int) -> bool:
    if last.format not in (DataFormat.jsonl, DataFormat.openai_batch):
        return last.rows + split.rows <= rows
    # by lines from mark to mark: the rows of a mark at the end of a file may grow
    return split.first + MARK_LINES - last.first <= max(rows // MARK_LINES, 1) * MARK_LINES


def _suffixes(kind: DataFormat) -> tuple[str, ...]:
    if kind is DataFormat.openai_batch:
        return SUFFIXES[DataFormat.jsonl]
    return SUFFIXES[kind] if kind is not DataFormat.auto else sum(SUFFIXES.values(), ())


def _with_compressions(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    text = tuple(s for s in suffixes if s not in SUFFIXES[DataFormat.parquet])
    return (*suffixes, *(s + c for s in text for c in COMPRESSIONS))


def _format(spec: DataSpec, file: InputFile) -> DataFormat:
    if spec.format is not DataFormat.auto:
        return spec.format
    for kind, suffixes in SUFFIXES.items():
        if file.path.lower().endswith(_with_compressions(suffixes)):
            return kind
    raise UserError(
        f"data.input={file.path}: its name does not say what it is; set data.format to parquet, jsonl or csv"
    )


def compression(path: str) -> str | None:
    """Returns the compression that a file's name says, in pyarrow's words."""
    return next((name for suffix, name in COMPRESSIONS.items() if path.lower().endswith(suffix)), None)


def _split(whole: Split, schemas: list[pa.Schema], types: ColumnTypes) -> Iterator[Split]:
    if whole.format is DataFormat.parquet:
        yield from _split_parquet(whole, schemas)
    elif whole.format in (DataFormat.jsonl, DataFormat.openai_batch):
        yield from _split_jsonl(whole, types)
    else:
        yield from _split_csv(whole, schemas)


def _split_parquet(whole: Split, schemas: list[pa.Schema]) -> Iterator[Split]:
    with whole.location.filesystem.open_input_file(whole.location.path) as stream:
        file = pq.ParquetFile(stream)
        schemas.append(file.schema_arrow.remove_metadata())
        first = 1
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            yield replace(whole, start=group, end=group + 1, first=first, rows=rows)
            first += rows


def _split_jsonl(whole: Split, types: ColumnTypes) -> Iterator[Split]:
    packed = compression(whole.location.path)
    offset = begin = number = rows = 0
    first = 1
    content = hashlib.blake2b(digest_size=8)
    with whole.location.filesystem.open_input_stream(whole.location.path, compression=packed) as stream:
        for line in lines_of(stream):
            number += 1
            if line.strip():
                rows += 1
                if offset < TYPED_BYTES:
                    _see_line(line, types)
            offset += len(line)
            content.update(line)
            if number - first + 1 >= MARK_LINES and packed is None:
                yield replace(whole, start=begin, end=offset, first=first, rows=rows, fingerprint=content.hexdigest())
                begin, first, rows, content = offset, number + 1, 0, hashlib.blake2b(digest_size=8)
    end = 0 if packed else offset
    yield replace(whole, start=begin, end=end, first=first, rows=rows, fingerprint=content.hexdigest())


def _see_line(line: bytes, types: ColumnTypes) -> None:
    try:
        types.see(parse_line(line))
    except ValueError:
        return  # a bad row when it is read; here it only has no vote


def _split_csv(whole: Split, schemas: list[pa.Schema]) -> Iterator[Split]:
    names = csv_names(whole.location, compression(whole.location.path))
    if not names:
        return
    schemas.append(pa.schema([(name, pa.string()) for name in names]))
    chunks = csv_chunks(whole.location, compression(whole.location.path), names)
    yield replace(whole, rows=sum(len(chunk.numbers) + len(chunk.bad) for chunk in chunks))
