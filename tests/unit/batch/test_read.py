"""Reading splits: every record becomes exactly one row, good or bad."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema.data import DataSpec
from pipelines.batch import columns as c
from pipelines.batch.read import read_split
from pipelines.batch.source import Source, open_source, pack

QUICK = settings(deadline=None, max_examples=60, database=None, derandomize=True)


def look(path: object) -> Source:
    return open_source(DataSpec(input=str(path), prompt="x"))


def rows_of(source: Source, id_column: str | None = None) -> list[dict[str, Any]]:
    tables = (t for s in source.splits for t in read_split(s, source.schema, source.json_columns, id_column))
    return [row for table in tables for row in table.to_pylist()]


def read(path: Path, data: bytes | str, id_column: str | None = None) -> list[dict[str, Any]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    source = look(path)
    rows = rows_of(source, id_column)
    assert source.rows == len(rows)
    return rows


def test_a_malformed_line_names_file_and_line_and_keeps_its_text(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", '{"x": 1}\n\n{"x": \r\n{"x": 2}\n')
    assert [(row["x"], row[c.ERROR], row[c.POSITION]) for row in rows] == [
        (1, None, 1),
        (None, "malformed_line", 3),
        (2, None, 4),
    ]
    assert rows[1][c.MESSAGE].startswith("a.jsonl:3: ")
    assert rows[1][c.RAW] == '{"x": '
    assert rows[0][c.RAW] is rows[0][c.MESSAGE] is None


@pytest.mark.parametrize(
    "line, message",
    [
        (b"[1, 2]", "a JSON object is wanted, this is list"),
        (b'"text"', "a JSON object is wanted, this is str"),
        (b"null", "a JSON object is wanted, this is NoneType"),
        (b'{"x": "\xff"}', "not UTF-8 (byte 7)"),
        (b'{"x": 1} {"x": 2}', "Extra data"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_line_that_is_no_object_is_a_bad_row(tmp_path: Path, line: bytes, message: str) -> None:
    rows = read(tmp_path / "a.jsonl", b'{"x": 1}\n' + line + b'\n{"x": 3}\n')
    assert [row["x"] for row in rows] == [1, None, 3]
    assert rows[1][c.ERROR] == "malformed_line"
    assert rows[1][c.MESSAGE].startswith(f"a.jsonl:2: {message}")
    assert "\n" not in rows[1][c.MESSAGE]


@pytest.mark.parametrize("line", [b'{"x": "\\ud800"}', b'{"x": "\xed\xa0\x80"}', b'{"\\ud800": "y"}'])
def test_half_a_surrogate_pair_is_a_bad_row(tmp_path: Path, line: bytes) -> None:
    rows = read(tmp_path / "a.jsonl", b'{"x": "a"}\n' + line + b'\n{"x": "c"}\n')
    assert [row["x"] for row in rows] == ["a", None, "c"]
    assert rows[1][c.ERROR] in ("malformed_line", "wrong_type")


def test_a_wrong_type_names_file_line_and_column_and_keeps_the_record(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", '{"x": 1, "y": "a"}\n{"x": "1", "y": "b"}\n{"x": 2, "y": "c"}\n')
    assert [row[c.ERROR] for row in rows] == [None, "wrong_type", None]
    assert rows[1][c.MESSAGE] == "a.jsonl:2: column 'x' holds int64 elsewhere, here str"
    assert json.loads(rows[1][c.RAW]) == {"x": "1", "y": "b"}


@pytest.mark.parametrize("data", ["nope\n[1]\n", "{}\n{}\n", "nope\n{}\n"])
def test_a_file_without_any_column_still_gives_its_rows(tmp_path: Path, data: str) -> None:
    rows = read(tmp_path / "a.jsonl", data)
    assert [row[c.POSITION] for row in rows] == [1, 2]


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    assert [row["x"] for row in read(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"x": 1}\n{"x": 2}\n')] == [1, 2]


def test_a_line_longer_than_a_read_block_is_one_record(tmp_path: Path) -> None:
    long = "ü" * (5 << 20)
    rows = read(tmp_path / "a.jsonl", json.dumps({"x": long}, ensure_ascii=False) + '\n{"x": "b"}')
    assert [len(row["x"]) for row in rows] == [5 << 20, 1]


def test_a_column_names_the_rows_and_where_it_is_null_the_position_does(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", '{"id": 7}\n{"id": null}\nnope\n{"id": 9}\n', id_column="id")
    ids = [row[c.ROW_ID] for row in rows]
    assert (ids[0], ids[3]) == ("7", "9")
    assert ids[1].endswith("-000000000002")
    assert ids[2].endswith("-000000000003")


def test_a_limit_counts_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('nope\n{"x": 1}\n{"x": 2}\n')
    assert [row["x"] for row in rows_of(look(tmp_path).first(2))] == [None, 1]


CELLS = (
    st.none()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    | st.lists(st.integers(0, 9), max_size=2)
)
RECORDS = st.builds(
    lambda row, ascii: json.dumps(row, ensure_ascii=ascii),
    st.dictionaries(st.sampled_from(["a", "b", "ü", "a b"]), CELLS, max_size=3),
    st.booleans(),
)
LINES = RECORDS | st.sampled_from(["", " ", "\t", "nope", "[1]", '{"a":', "null", '{"a": "\t"}', "\x0b", "\ufeff"])


def is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@QUICK
@given(
    lines=st.lists(LINES, max_size=12),
    times=st.integers(1, 20),
    end=st.sampled_from(["\n", "\r\n"]),
    is_ended=st.booleans(),
    block=st.integers(1, 300),
    limit=st.integers(1, 40),
)
def test_each_line_that_is_not_blank_becomes_one_row(
    lines: list[str], times: int, end: str, is_ended: bool, block: int, limit: int
) -> None:
    lines = ['{"key": 1}', *lines * times]
    wanted = [(n, line) for n, line in enumerate(lines, start=1) if line.encode().strip()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_bytes((end.join(lines) + (end if is_ended else "")).encode())
        source = look(path)
        rows = rows_of(source)
        assert source.rows == len(rows) == len(wanted)
        assert [row[c.POSITION] for row in rows] == [n for n, _ in wanted]
        ids = [row[c.ROW_ID] for row in rows]
        assert ids == sorted(set(ids))
        for row, (_, line) in zip(rows, wanted, strict=True):
            if not is_object(line):
                assert (row[c.ERROR], row[c.RAW]) == ("malformed_line", line)
            elif row[c.ERROR] is None:
                record = json.loads(line)
                for name in source.schema.names:
                    value = row[name]
                    was_json = name in source.json_columns and not isinstance(record.get(name), str)
                    assert (json.loads(value) if was_json and value is not None else value) == record.get(name)
            else:
                assert (row[c.ERROR], row[c.RAW]) == ("wrong_type", line)
        assert rows_of(pack(source, block)) == rows
        assert rows_of(pack(source.first(limit), block)) == rows[:limit]


TABLES = st.lists(
    st.tuples(st.sampled_from(["int", "float", "other", "null"]), st.integers(0, 20)), min_size=1, max_size=4
)


@QUICK
@given(tables=TABLES, group=st.integers(1, 7), block=st.integers(1, 50), limit=st.integers(1, 50))
def test_each_row_of_parquet_files_is_read_once(
    tables: list[tuple[str, int]], group: int, block: int, limit: int
) -> None:
    wanted: list[tuple[Any, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (kind, size) in enumerate(tables):
            values = {
                "int": pa.array(range(size), pa.int64()),
                "float": pa.array([n + 0.5 for n in range(size)], pa.float64()),
                "null": pa.nulls(size),
                "other": pa.array(range(size), pa.int64()),
            }[kind]
            name = "y" if kind == "other" else "x"
            pq.write_table(pa.table({name: values}), Path(folder, f"{index}.parquet"), row_group_size=group)
            wanted += [(None if name == "y" else value, n) for n, value in enumerate(values.to_pylist(), start=1)]
        if not wanted:
            return
        source = look(folder)
        rows = rows_of(source)
        assert source.rows == len(rows)
        assert [(row.get("x"), row[c.POSITION]) for row in rows] == wanted
        assert len({row[c.ROW_ID] for row in rows}) == len(rows)
        assert rows_of(pack(source, block)) == rows
        assert rows_of(pack(source.first(limit), block)) == rows[:limit]


@pytest.mark.parametrize(
    "first, second",
    [
        (pa.array([1, 2**53 + 1]), pa.array([1.5])),
        (pa.array([-1]), pa.array([2**63], pa.uint64())),
    ],
)
def test_a_parquet_value_that_the_common_type_cannot_hold_costs_no_other_row(
    tmp_path: Path, first: pa.Array, second: pa.Array
) -> None:
    pq.write_table(pa.table({"x": first}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": second}), tmp_path / "b.parquet")
    source = look(tmp_path)
    rows = rows_of(source)
    assert len(rows) == source.rows
    assert rows[-1][c.ERROR] is None or rows[0][c.ERROR] is None


def test_parquet_objects_of_different_fields_share_one_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [{"a": 1}]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [{"b": "s", "a": 2}]}), tmp_path / "b.parquet")
    assert [row["x"] for row in rows_of(look(tmp_path))] == [{"a": 1, "b": None}, {"a": 2, "b": "s"}]
