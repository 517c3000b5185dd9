"""CSV: all text, quoted line ends, and records that are no rows."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema.data import DataSpec
from pipelines.batch import columns as c
from pipelines.batch.read import read_split
from pipelines.batch.source import Source, open_source


def look(path: object) -> Source:
    return open_source(DataSpec(input=str(path), prompt="x"))


def rows_of(source: Source) -> list[dict[str, Any]]:
    tables = (t for s in source.splits for t in read_split(s, source.schema, source.json_columns, None))
    return [row for table in tables for row in table.to_pylist()]


def read(tmp_path: Path, data: str | bytes) -> list[dict[str, Any]]:
    path = tmp_path / "a.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    source = look(path)
    rows = rows_of(source)
    assert source.rows == len(rows)
    return sorted(rows, key=lambda row: row[c.ROW_ID])


def test_every_value_is_text_as_it_stands(tmp_path: Path) -> None:
    row = "007,1.50,true,NA,null,,2024-01-01"
    (got,) = read(tmp_path, f"a,b,c,d,e,f,g\n{row}\n")
    assert [got[name] for name in "abcdefg"] == row.split(",")


def test_quoted_commas_quotes_and_line_ends_are_part_of_a_value(tmp_path: Path) -> None:
    rows = read(tmp_path, 'a,b\n"x,y","say ""hi"""\n"two\nlines","\r\n"\n')
    assert [(row["a"], row["b"]) for row in rows] == [("x,y", 'say "hi"'), ("two\nlines", "\r\n")]


def test_a_record_of_too_few_or_too_many_fields_is_a_bad_row_that_names_its_number(tmp_path: Path) -> None:
    rows = read(tmp_path, 'a,b\n1,"x\ny"\n2\n3,x,y\n4,z\n')
    assert [(row["a"], row[c.POSITION], row[c.ERROR]) for row in rows] == [
        ("1", 1, None),
        (None, 2, "malformed_line"),
        (None, 3, "malformed_line"),
        ("4", 4, None),
    ]
    assert rows[1][c.MESSAGE] == "a.csv: record 2: 1 fields where the header has 2"
    assert (rows[1][c.RAW], rows[2][c.RAW]) == ("2", "3,x,y")


def test_a_file_of_bad_records_alone_is_read(tmp_path: Path) -> None:
    assert [row[c.ERROR] for row in read(tmp_path, "a,b\n1\n2\n")] == ["malformed_line"] * 2


def test_bad_records_far_into_a_file_keep_their_numbers(tmp_path: Path) -> None:
    lines = [f"{n},{'y' * 50}" for n in range(1, 40_001)]
    for number in (3, 20_000, 25_000, 40_000):
        lines[number - 1] = str(number)
    rows = read(tmp_path, "a,b\n" + "\n".join(lines) + "\n")
    assert [row[c.POSITION] for row in rows] == list(range(1, 40_001))
    assert all(int(row["a"] if row[c.ERROR] is None else row[c.RAW]) == row[c.POSITION] for row in rows)


def test_a_cell_that_is_no_utf8_makes_only_its_row_bad(tmp_path: Path) -> None:
    rows = read(tmp_path, b"a,b\n1,ok\n2,\xff\n3,ok\n")
    assert [row["a"] for row in rows] == ["1", None, "3"]
    assert rows[1][c.MESSAGE] == "a.csv: record 2: not UTF-8 (byte 0)"
    assert rows[1][c.RAW] == "2,\ufffd"


@pytest.mark.parametrize("size", [1_500_000, 5_000_000])
@pytest.mark.parametrize("cell", ["x", "x\n"])
def test_a_cell_of_megabytes_is_read(tmp_path: Path, size: int, cell: str) -> None:
    text = cell * (size // len(cell))
    rows = read(tmp_path, f'a,b\n1,"{text}"\n2,y\n')
    assert [len(row["b"]) for row in rows] == [len(text), 1]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa,b\n1,2\n")[0]["a"] == "1"


def test_the_first_rows_are_the_first_records_good_or_bad(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,x\n2\n3,x\n4,x\n")
    rows = rows_of(look(tmp_path).first(2))
    assert sorted(row[c.POSITION] for row in rows) == [1, 2]


CELLS = st.text(st.sampled_from('ab,"\n\r ü'), max_size=5)


@settings(deadline=None, max_examples=100, database=None, derandomize=True)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=3), min_size=1, max_size=15), st.sampled_from(["\n", "\r\n"]))
def test_each_record_becomes_one_row(records: list[list[str]], end: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator=end).writerows([["a", "b"], *records])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        path.write_bytes(buffer.getvalue().encode())
        source = look(path)
        rows = sorted(rows_of(source), key=lambda row: row[c.ROW_ID])
        assert source.rows == len(rows) == len(records)
        assert [row[c.POSITION] for row in rows] == list(range(1, len(records) + 1))
        for row, record in zip(rows, records, strict=True):
            if len(record) == 2:
                assert (row[c.ERROR], row["a"], row["b"]) == (None, *record)
            else:
                assert row[c.ERROR] == "malformed_line"
        assert len(rows_of(source.first(3))) == min(3, len(records))


@pytest.mark.parametrize(
    "data, kept",
    [
        ('a,b\n1,x\n2,"open\n3,y\n4,z\n', ["x"]),
        ('a,b\n1,x\n2,"open', ["x"]),
        ('a,b\n"1","open ""hi""\n', []),
    ],
)
def test_a_quote_that_is_never_closed_is_a_bad_row_not_one_answered_for_all_that_follow(
    tmp_path: Path, data: str, kept: list[str]
) -> None:
    rows = read(tmp_path, data)
    assert [row["b"] for row in rows if row[c.ERROR] is None] == kept
    bad = rows[-1]
    assert (bad[c.ERROR], bad[c.POSITION]) == ("malformed_line", len(kept) + 1)
    assert "a quote that is never closed" in bad[c.MESSAGE]
    assert "open" in bad[c.RAW]


@pytest.mark.parametrize("last", ['"x"', '""', '"say ""hi"""', '5"', '"two\nlines"', "x"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_last_value_that_is_whole_is_a_row(tmp_path: Path, last: str, end: str) -> None:
    (row,) = read(tmp_path, f"a,b\n1,{last}{end}")
    assert row[c.ERROR] is None
