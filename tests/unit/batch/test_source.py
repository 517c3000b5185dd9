"""Looking at an input: files, columns, counts, splits."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import UserError
from conf.schema.data import DataFormat, DataSpec
from pipelines.batch import columns as c
from pipelines.batch.read import read_split
from pipelines.batch.source import Source, open_source, pack


def look(*inputs: object, format: DataFormat = DataFormat.auto) -> Source:
    uris = [str(uri) for uri in inputs]
    return open_source(DataSpec(input=uris[0] if len(uris) == 1 else uris, format=format, prompt="x"))


def rows_of(source: Source) -> list[dict]:
    tables = (table for split in source.splits for table in read_split(split, source.schema, source.json_columns, None))
    return [row for table in tables for row in table.to_pylist()]


def refusal(*inputs: object, **options: DataFormat) -> str:
    with pytest.raises(UserError) as caught:
        look(*inputs, **options)
    assert "\n" not in str(caught.value)
    assert "data.input=" in str(caught.value)
    return str(caught.value)


def jsonl(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_several_inputs_are_read_in_the_order_given(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "z.jsonl", {"x": 1})
    second = jsonl(tmp_path / "a.jsonl", {"x": 2})
    assert [row["x"] for row in rows_of(look(first, second))] == [1, 2]


def test_a_folder_may_mix_formats(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"x": "1"})
    (tmp_path / "b.csv").write_text("x\n2\n")
    (tmp_path / "c.tsv").write_text("x\ty\n3\t4,5\n")
    pq.write_table(pa.table({"x": ["6"]}), tmp_path / "d.parquet")
    assert [(row["x"], row["y"]) for row in rows_of(look(tmp_path))] == [
        ("1", None),
        ("2", None),
        ("3", "4,5"),
        ("6", None),
    ]


def test_the_delimiter_goes_by_the_file_and_not_by_its_folders(tmp_path: Path) -> None:
    folder = tmp_path / "set.tsv.d"
    folder.mkdir()
    (folder / "a.csv").write_text("a,b\n1,2\n")
    assert look(folder / "a.csv").schema.names == ["a", "b"]


COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_reads_like_plain_text(tmp_path: Path, suffix: str) -> None:
    lines = "".join(f'{{"x": "{n}"}}\n\n' for n in range(300))
    csv = "x\n" + "".join(f"{n}\n" for n in range(300))
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(COMPRESS[suffix](lines.encode()))
    (tmp_path / f"b.csv.{suffix}").write_bytes(COMPRESS[suffix](csv.encode()))
    source = look(tmp_path)
    assert source.rows == 600
    assert [row["x"] for row in rows_of(source)] == [str(n) for n in range(300)] * 2
    assert rows_of(source.first(7)) == rows_of(source)[:7]


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x":1}\n') + gzip.compress(b'{"x":2}\n'))
    assert [row["x"] for row in rows_of(look(tmp_path))] == [1, 2]


@pytest.mark.parametrize("name", ["A.JSONL", "A.JSONL.GZ", "a.jsonl.GZ"])
def test_a_name_in_capitals_says_the_same(tmp_path: Path, name: str) -> None:
    data = b'{"x":1}\n'
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    source = look(tmp_path / name)
    assert (source.rows, source.schema.names) == (1, ["x"])


def test_an_unknown_suffix_asks_for_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"x": 1}\n')
    assert "set data.format" in refusal(tmp_path / "a.txt")
    assert look(tmp_path / "a.txt", format=DataFormat.jsonl).rows == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize("text", ["", "\n", "\n\r\n  \n\t\n", "\n" * 500])
def test_a_file_of_nothing_holds_no_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    if name == "a.csv":
        (tmp_path / name).write_text(text.replace(" ", "").replace("\t", ""))  # a line of blanks is a CSV header
    assert "it holds no rows" in refusal(tmp_path / name)


def test_a_csv_of_a_header_alone_and_a_parquet_without_rows_hold_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n")
    assert "it holds no rows" in refusal(tmp_path)
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "b.parquet")
    assert "it holds no rows" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.csv.zst"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is plain text\n" * 10)
    assert "cannot be read" in refusal(tmp_path / name)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n' * 1000)[:-12])
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("second", [{"x": ["text"]}, {"x": [{"a": 1}]}])
def test_columns_that_do_not_fit_together_are_refused(tmp_path: Path, second: dict) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table(second), tmp_path / "b.parquet")
    assert "x" in refusal(tmp_path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    assert "duplicate" in refusal(tmp_path)


def test_files_of_one_name_give_different_row_ids(tmp_path: Path) -> None:
    jsonl(tmp_path / "one" / "a.jsonl", {"x": 1}, {"x": 2})
    jsonl(tmp_path / "two" / "a.jsonl", {"x": 1})
    for inputs in ([tmp_path / "one", tmp_path / "two"], [tmp_path], [tmp_path / "*" / "a.jsonl"]):
        rows = rows_of(look(*inputs))
        assert len({row[c.ROW_ID] for row in rows}) == 3
        assert len({row[c.SOURCE] for row in rows}) == 2


def test_file_names_whose_short_hashes_are_equal_give_different_row_ids(tmp_path: Path) -> None:
    # these two collide in the first four bytes of blake2b
    for name in ("part-01892.jsonl", "part-11960.jsonl"):
        jsonl(tmp_path / name, {"x": 1})
    assert len({row[c.ROW_ID] for row in rows_of(look(tmp_path))}) == 2


def test_a_file_that_two_inputs_name_is_not_read_into_equal_row_ids(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"x": 1}, {"x": 2})
    ids = [row[c.ROW_ID] for row in rows_of(look(tmp_path, path))]
    assert len(ids) == len(set(ids))


def test_row_ids_do_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    ids = []
    for place in ("here", "there/below"):
        jsonl(tmp_path / place / "sub" / "a.jsonl", {"x": 1})
        ids.append(rows_of(look(tmp_path / place))[0][c.ROW_ID])
    assert ids[0] == ids[1]


def test_packing_joins_neighbours_up_to_a_size_and_never_across_files(tmp_path: Path) -> None:
    for name in "ab":
        jsonl(tmp_path / f"{name}.jsonl", *({"x": n} for n in range(640)))
    packed = pack(look(tmp_path), 128)
    assert [split.rows for split in packed.splits] == [128] * 10
    assert [split.name for split in packed.splits] == ["a.jsonl"] * 5 + ["b.jsonl"] * 5


def test_parquet_splits_are_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(10)}), tmp_path / "a.parquet", row_group_size=3)
    source = look(tmp_path)
    assert [split.rows for split in source.splits] == [3, 3, 3, 1]
    assert [row["x"] for row in rows_of(pack(source, 6))] == list(range(10))


def test_cutting_at_a_limit_keeps_the_first_rows(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", *({"x": n} for n in range(100)))
    jsonl(tmp_path / "b.jsonl", *({"x": n} for n in range(100, 200)))
    source = look(tmp_path)
    for limit in (1, 63, 64, 65, 100, 101, 199, 200, 201):
        cut = source.first(limit)
        assert cut.rows == min(limit, 200)
        assert [row["x"] for row in rows_of(pack(cut, 1000))] == list(range(min(limit, 200)))
    assert source.first(None) is source
