"""The unit of work: a range of records of one input file, which becomes one part file.

Units depend on the input alone. On its way through Ray Data a unit is one row, with its table as bytes in a cell, so
that neither the size of Ray's blocks nor the way in which it merges and splits them can part a unit or join two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A range of records."""

    id: str
    """Twelve hex digits, made of the file's name and the range's beginning."""
    fingerprint: str
    """Changes with what is in the records."""
    rows: int
    has_former: bool = False
    """Whether a part file of a former run is there, whose answers may still hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """A unit on its way, with its rows."""

    unit: Unit
    table: pa.Table
    note: dict[str, Any]
    """What one step tells the next; JSON."""


SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("fingerprint", pa.string()),
        ("rows", pa.int64()),
        ("has_former", pa.bool_()),
        ("note", pa.string()),
        ("table", pa.large_binary()),
    ]
)


def wrap(parcels: list[Parcel]) -> pa.Table:
    """Returns parcels as a table, a row each."""
    cells = []
    for parcel in parcels:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, parcel.table.schema) as writer:
            writer.write_table(parcel.table)
        cells.append(sink.getvalue().to_pybytes())
    units = [parcel.unit for parcel in parcels]
    columns = [
        [unit.id for unit in units],
        [unit.fingerprint for unit in units],
        [unit.rows for unit in units],
        [unit.has_former for unit in units],
        [json.dumps(parcel.note) for parcel in parcels],
        cells,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def unwrap(wrapped: pa.Table) -> list[Parcel]:
    """Returns the parcels of `wrap`."""
    parcels = []
    heads = wrapped.select(["unit", "fingerprint", "rows", "has_former", "note"]).to_pylist()
    for head, cell in zip(heads, wrapped.column("table"), strict=True):
        unit = Unit(id=head["unit"], fingerprint=head["fingerprint"], rows=head["rows"], has_former=head["has_former"])
        table = pa.ipc.open_stream(cell.as_buffer()).read_all()
        parcels.append(Parcel(unit=unit, table=table, note=json.loads(head["note"])))
    return parcels


def over_units(wrapped: pa.Table, step: Callable[[Parcel], Parcel]) -> pa.Table:
    """Applies a step to each unit."""
    return wrap([step(parcel) for parcel in unwrap(wrapped)])


def cut_units(units: Sequence[Unit], tables: Iterable[pa.Table], unit_rows: int) -> Iterator[tuple[Unit, pa.Table]]:
    """Cuts a split's rows into its units.

    Args:
        units: in the order of the records.
        tables: the records, in pieces of any size.
        unit_rows: records of a unit.

    Yields:
        Each unit with its rows. Where the file has lost records since it was looked at, the last units are missing.
    """
    rest: list[pa.Table] = []
    waiting = iter(units)
    for table in tables:
        rest.append(table)
        while sum(len(piece) for piece in rest) >= unit_rows:
            whole = pa.concat_tables(rest)
            rest = [whole.slice(unit_rows)]
            if (unit := next(waiting, None)) is None:
                return
            yield unit, whole.slice(0, unit_rows)
    whole = pa.concat_tables(rest) if rest else None
    if whole is not None and len(whole) and (unit := next(waiting, None)) is not None:
        yield unit, whole
