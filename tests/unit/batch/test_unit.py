"""Units: cut from the input alone, they go through Ray unharmed and stay the same where the input does."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema.data import DataSpec
from pipelines.batch import columns as c
from pipelines.batch import source as source_module
from pipelines.batch.read import read_split
from pipelines.batch.source import Source, open_source, pack
from pipelines.batch.unit import Parcel, Unit, cut_units, over_units, unwrap, wrap

QUICK = settings(deadline=None, max_examples=100, database=None, derandomize=True)

NOTES = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=2)


def unit(number: int, rows: int = 2) -> Unit:
    return Unit(id=f"{number:012x}", fingerprint=f"f{number}", rows=rows, has_former=bool(number % 2))


@QUICK
@given(texts=st.lists(st.lists(st.none() | st.text(), max_size=4), max_size=4), note=NOTES)
def test_parcels_come_out_of_a_table_as_they_went_in(texts: list[list[str | None]], note: dict[str, Any]) -> None:
    parcels = [
        Parcel(unit=unit(n), table=pa.table({"q": pa.array(column, pa.string())}), note=note)
        for n, column in enumerate(texts)
    ]
    wrapped = wrap(parcels)
    assert wrapped.num_rows == len(parcels)
    assert unwrap(wrapped) == parcels
    pieces = [wrapped.slice(index, 1) for index in range(len(parcels))]  # however Ray cuts and joins them
    if pieces:
        assert unwrap(pa.concat_tables(reversed(pieces))) == parcels[::-1]


def test_a_slice_of_a_table_is_wrapped_without_the_rest_of_it() -> None:
    whole = pa.table({"q": ["x" * 1000] * 1000, "n": [[1, 2]] * 1000})
    wrapped = wrap([Parcel(unit=unit(1), table=whole.slice(500, 2), note={})])
    assert unwrap(wrapped)[0].table == whole.slice(500, 2)
    assert wrapped.nbytes < 10_000


def test_a_step_sees_each_unit_for_itself() -> None:
    parcels = [Parcel(unit=unit(n), table=pa.table({"n": [n]}), note={}) for n in range(3)]
    seen: list[str] = []

    def step(parcel: Parcel) -> Parcel:
        seen.append(parcel.unit.id)
        return parcel

    assert unwrap(over_units(wrap(parcels), step)) == parcels
    assert seen == [parcel.unit.id for parcel in parcels]


@QUICK
@given(pieces=st.lists(st.integers(0, 9), max_size=12), unit_rows=st.integers(1, 8))
def test_units_are_cut_whatever_the_pieces(pieces: list[int], unit_rows: int) -> None:
    total = sum(pieces)
    units = [unit(start, min(unit_rows, total - start)) for start in range(0, total, unit_rows)]
    numbers = iter(range(total))
    tables = [pa.table({"n": pa.array([next(numbers) for _ in range(piece)], pa.int64())}) for piece in pieces]
    cut = list(cut_units(units, iter(tables), unit_rows))
    assert [one for one, _ in cut] == units
    assert [len(table) for _, table in cut] == [one.rows for one in units]
    assert [n for _, table in cut for n in table.column("n").to_pylist()] == list(range(total))


@pytest.mark.parametrize("rows, names", [(5, [0, 1, 2]), (4, [0, 1]), (3, [0, 1]), (0, []), (9, [0, 1, 2])])
def test_of_a_file_that_has_changed_meanwhile_no_row_gets_anothers_unit(rows: int, names: list[int]) -> None:
    units = [unit(0), unit(1), unit(2, rows=1)]
    cut = list(cut_units(units, [pa.table({"n": pa.array(range(rows), pa.int64())})], 2))
    assert [one.id for one, _ in cut] == [units[n].id for n in names]
    assert [table.column("n")[0].as_py() for _, table in cut] == [2 * n for n in names]


def write(path: Path, texts: list[str]) -> None:
    """Writes rows; of Parquet, in groups of four."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"q": texts}), path, row_group_size=4)
    elif path.suffix == ".csv":
        path.write_text("q\n" + "".join(f"{text}\n" for text in texts))
    else:
        data = "".join(json.dumps({"q": text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def look(path: Path, unit_rows: int, limit: int | None = None) -> tuple[Source, list[Unit]]:
    source = pack(open_source(DataSpec(input=str(path), prompt="{{ q }}")).first(limit), unit_rows)
    return source, [one for split in source.splits for one in split.units(unit_rows, source.schema)]


@pytest.fixture
def splits_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MARK_LINES", 4)


FILES = ["in.jsonl", "in.jsonl.gz", "in.csv", "in.parquet"]
TEXTS = [f"row {n}" for n in range(23)]


@pytest.mark.usefixtures("splits_of_four")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("unit_rows", [1, 3, 4, 5, 8, 23, 99])
def test_units_hold_each_row_once_in_its_order(tmp_path: Path, name: str, unit_rows: int) -> None:
    write(tmp_path / name, TEXTS)
    source, units = look(tmp_path / name, unit_rows)
    assert len({one.id for one in units}) == len(units)
    assert all(len(one.id) == 12 and one.rows <= unit_rows for one in units)
    rows: list[str] = []
    for split in source.splits:
        tables = read_split(split, source.schema, source.json_columns, None)
        for one, table in cut_units(split.units(unit_rows, source.schema), tables, unit_rows):
            assert len(table) == one.rows
            rows += table.column("q").to_pylist()
    assert rows == TEXTS
    assert look(tmp_path / name, unit_rows)[1] == units


@pytest.mark.usefixtures("splits_of_four")
@pytest.mark.parametrize("unit_rows", [2, 4, 8, 12])
@pytest.mark.parametrize("more", [1, 3, 4, 5, 40])
def test_units_of_a_file_that_grows_stay_but_for_its_end(tmp_path: Path, unit_rows: int, more: int) -> None:
    write(tmp_path / "in.jsonl", TEXTS)
    before = look(tmp_path / "in.jsonl", unit_rows)[1]
    write(tmp_path / "in.jsonl", TEXTS + ["more"] * more)
    after = look(tmp_path / "in.jsonl", unit_rows)[1]
    untouched = 20 // max(unit_rows, 4) * max(unit_rows, 4) // unit_rows
    assert after[:untouched] == before[:untouched]
    assert untouched >= 1


@pytest.mark.usefixtures("splits_of_four")
@pytest.mark.parametrize("unit_rows", [5, 6, 7, 9, 10])
@pytest.mark.parametrize("more", [1, 3, 5, 40])
def test_rows_stay_in_their_unit_when_a_file_grows(tmp_path: Path, unit_rows: int, more: int) -> None:
    """Else their answers, kept under the unit that they were in, are paid for again."""

    def homes(texts: list[str]) -> dict[int, str]:
        write(tmp_path / "in.jsonl", texts)
        source, _ = look(tmp_path / "in.jsonl", unit_rows)
        found = {}
        for split in source.splits:
            tables = read_split(split, source.schema, source.json_columns, None)
            for one, table in cut_units(split.units(unit_rows, source.schema), tables, unit_rows):
                found.update(dict.fromkeys(table.column(c.POSITION).to_pylist(), one.id))
        return found

    before, after = homes(TEXTS), homes(TEXTS + ["more"] * more)
    assert {position: after[position] for position in before} == before


@pytest.mark.usefixtures("splits_of_four")
@pytest.mark.parametrize("unit_rows", [4, 8, 12])
@pytest.mark.parametrize("changed", [0, 7, 22])
def test_a_changed_line_changes_the_fingerprint_of_its_unit_and_of_no_other(
    tmp_path: Path, unit_rows: int, changed: int
) -> None:
    write(tmp_path / "in.jsonl", TEXTS)
    before = look(tmp_path / "in.jsonl", unit_rows)[1]
    write(tmp_path / "in.jsonl", [*TEXTS[:changed], "ROW 0", *TEXTS[changed + 1 :]])
    after = look(tmp_path / "in.jsonl", unit_rows)[1]
    assert [one.id for one in after] == [one.id for one in before]
    other = [n for n, (old, new) in enumerate(zip(before, after, strict=True)) if old.fingerprint != new.fingerprint]
    assert other == [changed // unit_rows]


@pytest.mark.parametrize("name", FILES)
def test_a_column_that_becomes_another_changes_every_fingerprint(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, TEXTS)
    source, before = look(tmp_path / name, 8)
    schema = pa.schema([("q", pa.int64())])
    after = [one for split in source.splits for one in split.units(8, schema)]
    assert [one.id for one in after] == [one.id for one in before]
    assert not {one.fingerprint for one in after} & {one.fingerprint for one in before}


@pytest.mark.parametrize("name", ["in.csv", "in.parquet"])
def test_of_a_file_that_is_not_read_to_be_counted_size_and_time_make_the_fingerprint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, TEXTS)
    before = look(path, 8)[1]
    data, stat = path.read_bytes(), path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert look(path, 8)[1] == before
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = look(path, 8)[1]
    assert [one.id for one in after] == [one.id for one in before]
    assert all(new.fingerprint != old.fingerprint for old, new in zip(before, after, strict=True))


def test_a_compressed_file_counts_by_its_text_and_not_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    write(path, TEXTS)
    before = look(path, 8)[1]
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=5))
    assert look(path, 8)[1] == before
    write(path, ["ROW 0", *TEXTS[1:]])
    assert not {one.fingerprint for one in look(path, 8)[1]} & {one.fingerprint for one in before}


def test_files_of_one_name_have_units_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "in.jsonl", TEXTS)
    inputs = [str(tmp_path / folder / "in.jsonl") for folder in ("a", "b")]
    source = open_source(DataSpec(input=inputs, prompt="{{ q }}"))
    ids = [one.id for split in source.splits for one in split.units(8, source.schema)]
    assert len(ids) == len(set(ids)) == 6


def test_a_file_keeps_its_units_when_another_of_its_name_is_added(tmp_path: Path) -> None:
    """Else its answers are paid for again and stand in the output twice."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "in.jsonl", TEXTS)
    before = look(tmp_path / "a" / "in.jsonl", 8)[1]
    inputs = [str(tmp_path / folder / "in.jsonl") for folder in ("a", "b")]
    source = open_source(DataSpec(input=inputs, prompt="{{ q }}"))
    assert [one.id for one in source.splits[0].units(8, source.schema)] == [one.id for one in before]


@pytest.mark.usefixtures("splits_of_four")
@pytest.mark.parametrize("limit", [1, 4, 6, 8, 22])
def test_a_limit_changes_the_last_unit_alone(tmp_path: Path, limit: int) -> None:
    write(tmp_path / "in.jsonl", TEXTS)
    whole, part = look(tmp_path / "in.jsonl", 4)[1], look(tmp_path / "in.jsonl", 4, limit)[1]
    assert sum(one.rows for one in part) == limit
    assert part[: limit // 4] == whole[: limit // 4]
    assert [one.id for one in part] == [one.id for one in whole[: len(part)]]
    if limit % 4 and limit < 20:
        assert part[-1].fingerprint != whole[len(part) - 1].fingerprint
