"""Writing a unit: answers, dead letters, counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.schema.output import OutputFormat
from pipelines.batch import columns as c
from pipelines.batch.commit import FAILED_SCHEMA, Sink, commit, unit_id
from pipelines.storage import locate


def good(row_id: str, output: str = "yes", **own: Any) -> dict[str, Any]:
    return {
        **own,
        c.ROW_ID: row_id,
        c.SOURCE: "a.jsonl",
        c.POSITION: 1,
        c.TOKENS: [1, 2],
        c.REQUEST_KEY: "k" * 32,
        c.OUTPUT: output,
        c.FINISH_REASON: "stop",
        c.PROMPT_TOKENS: 2,
        c.COMPLETION_TOKENS: 3,
        c.ATTEMPTS: 1,
    }


def bad(row_id: str, error: str = "malformed_line", **own: Any) -> dict[str, Any]:
    row = {c.ROW_ID: row_id, c.SOURCE: "a.jsonl", c.POSITION: 1, c.ERROR: error, c.MESSAGE: f"says {row_id}"}
    return {**own, **row, c.ATTEMPTS: 0}


def table(*rows: dict[str, Any], own: pa.Schema | None = None) -> pa.Table:
    own = pa.schema([("x", pa.string())]) if own is None else own
    schema = pa.schema([*own, *c.TYPES.items()])
    return pa.Table.from_pylist(list(rows), schema=schema)


def sink(folder: Path, kind: OutputFormat = OutputFormat.parquet, prefix: str = "", answer: str | None = None) -> Sink:
    return Sink(output=locate(str(folder), "output.path"), format=kind, prefix=prefix, answer_column=answer)


def counts(written: pa.Table) -> dict[str, Any]:
    (row,) = written.to_pylist()
    return {**row, "errors": json.loads(row["errors"]), "sample": json.loads(row["sample"])}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows_in(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).read().to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


ANSWERS = ["output", "finish_reason", "prompt_tokens", "completion_tokens", "request_key", "row_id"]


@pytest.mark.parametrize("kind", OutputFormat)
def test_answers_and_dead_letters_go_to_files_named_after_the_unit(tmp_path: Path, kind: OutputFormat) -> None:
    rows = table(good("1", x="ü"), bad("2", x="b"), good("3", x=None))
    unit = counts(commit(rows, sink(tmp_path, kind)))["unit"]
    name = f"part-{unit}.{kind.value}"
    assert files(tmp_path) == [f"failed/{name}", name]
    answers = rows_in(tmp_path / name)
    assert [list(row) for row in answers] == [["x", *ANSWERS]] * 2
    assert [(row["x"], row["output"], row["row_id"], row["completion_tokens"]) for row in answers] == [
        ("ü", "yes", "1", 3),
        (None, "yes", "3", 3),
    ]
    (letter,) = rows_in(tmp_path / "failed" / name)
    assert letter == {
        "row_id": "2",
        "source": "a.jsonl",
        "position": 1,
        "error": "malformed_line",
        "message": "says 2",
        "attempts": 0,
        "row": '{"x": "b"}',
    }


def test_a_prefix_stands_before_added_columns_and_not_before_the_inputs(tmp_path: Path) -> None:
    own = pa.schema([("output", pa.string())])
    unit = counts(commit(table({**good("1"), "output": "mine"}, own=own), sink(tmp_path, prefix="manta_")))["unit"]
    (row,) = rows_in(tmp_path / f"part-{unit}.parquet")
    assert list(row) == ["output", *("manta_" + name for name in ANSWERS)]
    assert (row["output"], row["manta_output"]) == ("mine", "yes")


def test_a_unit_without_failures_makes_no_failed_folder_and_the_other_way_round(tmp_path: Path) -> None:
    commit(table(good("1")), sink(tmp_path / "good"))
    commit(table(bad("1")), sink(tmp_path / "bad"))
    assert [path.name for path in (tmp_path / "good").iterdir()] == files(tmp_path / "good")
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["failed"]


def test_dead_letters_have_one_schema_whatever_the_input(tmp_path: Path) -> None:
    own = pa.schema([("x", pa.list_(pa.struct([("when", pa.timestamp("us")), ("b", pa.binary())])))])
    commit(table(bad("1", x=[{"when": 0, "b": b"\xff"}]), own=own), sink(tmp_path))
    commit(table(bad("2", x="text")), sink(tmp_path))
    read = [pq.ParquetFile(path).schema_arrow for path in (tmp_path / "failed").iterdir()]
    assert read == [FAILED_SCHEMA] * 2


def test_a_record_that_could_not_be_read_is_kept_as_it_stood(tmp_path: Path) -> None:
    commit(table(bad("1", **{c.RAW: '{"x": '}), bad("2", **{c.RAW: ""})), sink(tmp_path))
    (path,) = (tmp_path / "failed").iterdir()
    assert [row["row"] for row in rows_in(path)] == ['{"x": ', ""]


def test_counts_add_up(tmp_path: Path) -> None:
    truncated = {**good("2", x="b"), c.FINISH_REASON: "length"}
    rows = table(good("1", x="a"), truncated, bad("3", "e1"), bad("4", "e2"), bad("5", "e1"))
    got = counts(commit(rows, sink(tmp_path)))
    assert (got["answers"], got["failed"], got["truncated"]) == (2, 3, 1)
    assert (got["prompt_tokens"], got["completion_tokens"], got["matches"]) == (4, 6, 0)
    assert got["errors"] == {"e1": [2, "says 3"], "e2": [1, "says 4"]}
    assert [(row["x"], row[c.OUTPUT]) for row in got["sample"]] == [("a", "yes"), ("b", "yes")]


def test_no_rows_write_nothing_and_count_nothing(tmp_path: Path) -> None:
    empty = commit(table(), sink(tmp_path))
    assert empty.num_rows == 0
    assert empty.schema == commit(table(good("1")), sink(tmp_path)).schema
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "answer, kind, matches",
    [
        ("yes", pa.string(), 1),
        (" yes\n", pa.string(), 1),
        ("Yes", pa.string(), 0),
        ("ye", pa.string(), 0),
        (None, pa.string(), 0),
    ],
)
def test_a_match_is_equal_but_for_blanks_around_it(
    tmp_path: Path, answer: Any, kind: pa.DataType, matches: int
) -> None:
    rows = table(good("1", "yes ", want=answer), bad("2"), own=pa.schema([("want", kind)]))
    assert counts(commit(rows, sink(tmp_path, answer="want")))["matches"] == matches


@pytest.mark.parametrize(
    "answer, kind, output", [(3, pa.int64(), "3"), (3, pa.float64(), "3"), (2.5, pa.float64(), "2.5")]
)
def test_a_number_matches_its_text(tmp_path: Path, answer: Any, kind: pa.DataType, output: str) -> None:
    rows = table(good("1", output, want=answer), own=pa.schema([("want", kind)]))
    assert counts(commit(rows, sink(tmp_path, answer="want")))["matches"] == 1


def test_a_null_answer_matches_nothing(tmp_path: Path) -> None:
    rows = table(good("1", "None", want=None), own=pa.schema([("want", pa.string())]))
    assert counts(commit(rows, sink(tmp_path, answer="want")))["matches"] == 0


@pytest.mark.parametrize("kind", OutputFormat)
def test_writing_a_unit_twice_leaves_one_file_of_each_kind(tmp_path: Path, kind: OutputFormat) -> None:
    rows = table(good("1"), bad("2"))
    first = commit(rows, sink(tmp_path, kind))
    before = files(tmp_path)
    assert commit(rows, sink(tmp_path, kind)) == first
    assert files(tmp_path) == before


def test_writing_a_unit_again_with_other_outcomes_leaves_each_row_once(tmp_path: Path) -> None:
    commit(table(bad("1"), good("2")), sink(tmp_path))
    commit(table(good("1"), good("2")), sink(tmp_path))
    assert sorted(row["row_id"] for name in files(tmp_path) for row in rows_in(tmp_path / name)) == ["1", "2"]


def test_the_unit_depends_on_its_rows_and_not_on_their_order() -> None:
    assert unit_id(table(good("1"), good("2"))) == unit_id(table(bad("2"), good("1")))
    assert unit_id(table(good("1"))) != unit_id(table(good("2")))
    assert unit_id(table(good("1"), good("1"))) != unit_id(table(good("1")))
    assert unit_id(table(good("12"), good("3"))) != unit_id(table(good("1"), good("23")))


def test_units_whose_rows_have_the_same_user_ids_do_not_overwrite_each_other(tmp_path: Path) -> None:
    commit(table({**good("same", x="a"), c.POSITION: 1}), sink(tmp_path))
    commit(table({**good("same", x="b"), c.POSITION: 2}), sink(tmp_path))
    assert sorted(row["x"] for name in files(tmp_path) for row in rows_in(tmp_path / name)) == ["a", "b"]


@pytest.mark.parametrize("kind", OutputFormat)
@pytest.mark.parametrize(
    "value, of",
    [
        ({}, pa.struct([])),
        ([], pa.list_(pa.null())),
        (None, pa.null()),
        ([{}], pa.list_(pa.struct([]))),
        ({"a": None}, pa.struct([("a", pa.null())])),
    ],
)
def test_a_column_without_a_value_in_it_can_be_written(
    tmp_path: Path, kind: OutputFormat, value: Any, of: pa.DataType
) -> None:
    commit(table(good("1", x=value), own=pa.schema([("x", of)])), sink(tmp_path, kind))
    assert [row["output"] for name in files(tmp_path) for row in rows_in(tmp_path / name)] == ["yes"]


def test_jsonl_is_json_even_where_a_float_is_no_number(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    own = pa.schema([("x", pa.float64())])
    rows = table(good("1", x=float("nan")), good("2", x=float("inf")), bad("3", x=float("-inf")), own=own)
    got = commit(rows, sink(tmp_path, OutputFormat.jsonl))
    for name in files(tmp_path):
        for line in (tmp_path / name).read_text().splitlines():
            row = json.loads(line, parse_constant=refuse)
            json.loads(row.get("row", "{}"), parse_constant=refuse)
    assert got.num_rows == 1


def test_a_line_separator_in_an_answer_stays_in_its_line(tmp_path: Path) -> None:
    commit(table(good("1", "a\nb\u2028c\r")), sink(tmp_path, OutputFormat.jsonl))
    (name,) = files(tmp_path)
    (line,) = (tmp_path / name).read_bytes().rstrip(b"\n").split(b"\n")
    assert json.loads(line)["output"] == "a\nb\u2028c\r"
