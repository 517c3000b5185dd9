"""Writing a unit: answers, dead letters, the mark, and what of the log remains.

One file, though it is long: all commit small units into a folder of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.schema.output import OutputFormat
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.answers import PREFIX
from pipelines.batch.commit import FAILED_SCHEMA, LeaseLost, Sink, commit
from pipelines.batch.unit import Parcel, Unit
from pipelines.ledger.folder import Folder
from pipelines.ledger.lease import lease_file
from pipelines.ledger.log import LogWriter, log_files
from pipelines.ledger.mark import Mark, read_mark
from pipelines.storage import locate

UNIT = "0123456789ab"
KINDS = (OutputFormat.parquet, OutputFormat.jsonl)
ANSWERS = ["output", "finish_reason", "prompt_tokens", "completion_tokens", "request_key", "row_id"]
COUNTS = {"requests": 2, "engine_prompt_tokens": 9, "replayed": 1, "shared": 3, "saved_tokens": 4}


def good(row_id: str, output: str = "yes", reason: str = "stop", **own: Any) -> dict[str, Any]:
    ours = {c.ROW_ID: row_id, c.SOURCE: "a.jsonl", c.POSITION: 1, c.REQUEST_KEY: row_id * 32, c.ATTEMPTS: 1}
    answer = {"output": output, "finish_reason": reason, "prompt_tokens": 2, "completion_tokens": 3}
    return {**ours, **{PREFIX + name: value for name, value in answer.items()}, **own}


def bad(row_id: str, error: str = "malformed_line", **own: Any) -> dict[str, Any]:
    ours = {c.ROW_ID: row_id, c.SOURCE: "a.jsonl", c.POSITION: 1, c.ERROR: error, c.MESSAGE: f"says {row_id}"}
    return {**ours, c.ATTEMPTS: 0, **own}


def table(*rows: dict[str, Any], own: pa.Schema | None = None) -> pa.Table:
    own = pa.schema([("x", pa.string())]) if own is None else own
    inner = [(name, of) for name, of in c.TYPES.items() if name != c.TOKENS]
    texts = [(PREFIX + name, pa.string()) for name in ("output", "finish_reason")]
    numbers = [(PREFIX + name, pa.int32()) for name in ("prompt_tokens", "completion_tokens")]
    return pa.Table.from_pylist(list(rows), schema=pa.schema([*own, *inner, *texts, *numbers]))


def sink(folder: Path, kind: OutputFormat = OutputFormat.parquet, prefix: str = "", answer: str | None = None) -> Sink:
    suffix = "parquet" if kind is OutputFormat.parquet else "jsonl"
    made = Folder(root=locate(str(folder), "output.path"), suffix=suffix)
    lease_file(made, "run1").write_bytes(b"held")
    return Sink(
        folder=made, run="run1", format=kind, prefix=prefix, answer_column=answer, model="m", task=Task.generate
    )


def put(rows: pa.Table, to: Sink, unit: str = UNIT, is_partial: bool = False) -> dict[str, Any]:
    """Commits a unit; returns what the driver gets."""
    parcel = Parcel(
        unit=Unit(id=unit, fingerprint="f", rows=len(rows)),
        table=rows,
        note={"is_partial": is_partial, "counts": COUNTS},
    )
    (row,) = commit([parcel], to).to_pylist()
    return {**row, "mark": json.loads(row["mark"]), "sample": json.loads(row["sample"])}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("part-*") if path.is_file())


def rows_in(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).read().to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def all_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for name in files(folder) for row in rows_in(folder / name)]


def mark(to: Sink, unit: str = UNIT) -> Mark:
    found = read_mark(to.folder, unit)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_dead_letters_go_to_files_named_after_the_unit(tmp_path: Path, kind: OutputFormat) -> None:
    rows = table(good("1", x="ü"), bad("2", x="b"), bad("3", "too_long", **{c.REQUEST_KEY: "k"}), good("4", x=None))
    put(rows, sink(tmp_path, kind))
    name = f"part-{UNIT}.{kind.value}"
    assert files(tmp_path) == [f"failed/{name}", name]
    answers = rows_in(tmp_path / name)
    assert [list(row) for row in answers] == [["x", *ANSWERS]] * 2
    assert [
        (row["x"], row["output"], row["row_id"], row["request_key"], row["completion_tokens"]) for row in answers
    ] == [
        ("ü", "yes", "1", "1" * 32, 3),
        (None, "yes", "4", "4" * 32, 3),
    ]
    letter, other = rows_in(tmp_path / "failed" / name)
    assert letter == {
        "row_id": "2",
        "source": "a.jsonl",
        "position": 1,
        "error": "malformed_line",
        "message": "says 2",
        "attempts": 0,
        "request_key": None,
        "row": '{"x": "b"}',
    }
    assert (other["error"], other["request_key"]) == ("too_long", "k")


def test_rows_are_written_in_the_order_of_the_input(tmp_path: Path) -> None:
    rows = [good(str(n), **{c.POSITION: n}) for n in (10, 2, 1)] + [bad(str(n), **{c.POSITION: n}) for n in (9, 3)]
    put(table(*rows), sink(tmp_path))
    written = {name: [row["row_id"] for row in rows_in(tmp_path / name)] for name in files(tmp_path)}
    assert list(written.values()) == [["3", "9"], ["1", "2", "10"]]


def test_a_prefix_stands_before_added_columns_and_not_before_the_inputs(tmp_path: Path) -> None:
    own = pa.schema([("output", pa.string())])
    put(table({**good("1"), "output": "mine"}, own=own), sink(tmp_path, prefix="manta_"))
    (row,) = all_rows(tmp_path)
    assert list(row) == ["output", *("manta_" + name for name in ANSWERS)]
    assert (row["output"], row["manta_output"]) == ("mine", "yes")


def test_dead_letters_have_one_schema_whatever_the_input(tmp_path: Path) -> None:
    own = pa.schema([("x", pa.list_(pa.struct([("when", pa.timestamp("us")), ("b", pa.binary())])))])
    put(table(bad("1", x=[{"when": 0, "b": b"\xff"}]), own=own), sink(tmp_path))
    put(table(bad("2", x="text")), sink(tmp_path), unit="f" * 12)
    read = [pq.ParquetFile(path).schema_arrow for path in (tmp_path / "failed").iterdir()]
    assert read == [FAILED_SCHEMA] * 2


def test_a_record_that_could_not_be_read_is_kept_as_it_stood(tmp_path: Path) -> None:
    put(table(bad("1", **{c.RAW: '{"x": '}), bad("2", **{c.RAW: ""})), sink(tmp_path))
    assert [row["row"] for row in all_rows(tmp_path)] == ['{"x": ', ""]


def test_counts_add_up(tmp_path: Path) -> None:
    rows = table(good("1", x="a"), good("2", reason="length", x="b"), bad("3", "e1"), bad("4", "e2"), bad("5", "e1"))
    to = sink(tmp_path)
    got = put(rows, to)
    said = mark(to)
    assert (got["unit"], got["is_done"]) == (UNIT, True)
    assert got["mark"] == json.loads((tmp_path / "_manta" / "done" / f"{UNIT}.json").read_text())
    assert (said.unit, said.fingerprint, said.run) == (UNIT, "f", "run1")
    assert (said.answers, said.failed, said.truncated, said.matches) == (2, 3, 1, 0)
    assert (said.prompt_tokens, said.completion_tokens) == (4, 6)
    assert {name: getattr(said, name) for name in COUNTS} == COUNTS
    assert said.errors == {"e1": (2, "says 3"), "e2": (1, "says 4")}
    assert [(row["x"], row[PREFIX + "output"]) for row in got["sample"]] == [("a", "yes"), ("b", "yes")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_names_the_sizes_of_its_files(tmp_path: Path, kind: OutputFormat) -> None:
    to = sink(tmp_path, kind)
    for rows in (table(good("1"), bad("2")), table(good("1")), table(bad("2"))):
        put(rows, to)
        assert mark(to).is_whole(to.folder, to.folder.written())
        sizes = [path.stat().st_size for name in files(tmp_path) if (path := tmp_path / name)]
        assert sorted(n for n in (mark(to).answers_bytes, mark(to).failed_bytes) if n) == sorted(sizes)


def test_no_units_write_nothing(tmp_path: Path) -> None:
    to = sink(tmp_path)
    assert commit([], to).num_rows == 0
    assert to.folder.written() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_writing_a_unit_twice_leaves_one_file_of_each_kind(tmp_path: Path, kind: OutputFormat) -> None:
    to = sink(tmp_path, kind)
    first = put(table(good("1"), bad("2")), to)
    before = to.folder.written()
    assert put(table(good("1"), bad("2")), to) == first
    assert to.folder.written() == before


def test_a_unit_written_again_with_other_outcomes_leaves_each_row_once(tmp_path: Path) -> None:
    to = sink(tmp_path)
    put(table(bad("1"), good("2")), to)
    put(table(good("1"), good("2")), to)
    assert sorted(row["row_id"] for row in all_rows(tmp_path)) == ["1", "2"]
    assert (mark(to).answers, mark(to).failed_bytes) == (2, 0)
    put(table(bad("1"), bad("2")), to)
    assert files(tmp_path) == [f"failed/part-{UNIT}.parquet"]
    assert (mark(to).failed, mark(to).answers_bytes) == (2, 0)


def log_of(to: Sink, unit: str) -> None:
    log = LogWriter(to.folder, unit, "run0", "replica")
    log.end("key", b'["r","e","m"]')
    log.close()


def test_a_units_log_is_dropped_when_its_mark_is_written_and_no_other_units(tmp_path: Path) -> None:
    to, other = sink(tmp_path), "f" * 12
    log_of(to, UNIT)
    log_of(to, other)
    put(table(good("1")), to)
    assert log_files(to.folder, [UNIT]) == []
    assert len(log_files(to.folder, [other])) == 1


def test_a_unit_that_is_not_at_its_end_gets_no_mark_and_keeps_its_log(tmp_path: Path) -> None:
    to = sink(tmp_path)
    log_of(to, UNIT)
    got = put(table(good("1")), to, is_partial=True)
    assert got["is_done"] is False
    assert [row["row_id"] for row in all_rows(tmp_path)] == ["1"]
    assert read_mark(to.folder, UNIT) is None
    assert len(log_files(to.folder, [UNIT])) == 1


def test_who_has_lost_the_lease_writes_nothing(tmp_path: Path) -> None:
    to = sink(tmp_path)
    put(table(good("1", "before")), to)
    log_of(to, UNIT)
    before = to.folder.written()
    lease_file(to.folder, "run1").delete()
    with pytest.raises(LeaseLost):
        put(table(good("1", "after"), bad("2")), to)
    assert to.folder.written() == before


def test_a_unit_that_this_run_has_written_is_not_written_again(tmp_path: Path) -> None:
    to = sink(tmp_path)
    first = put(table(good("1")), to)
    before = to.folder.written()
    unit = Unit(id=UNIT, fingerprint="f", rows=1)
    again = Parcel(unit=unit, table=table().drop_columns([c.ATTEMPTS]), note={"is_committed": True})
    (row,) = commit([again], to).to_pylist()
    assert (row["is_done"], json.loads(row["mark"]), row["sample"]) == (True, first["mark"], "[]")
    assert to.folder.written() == before


@pytest.mark.parametrize(
    "answer, kind, output, matches",
    [
        ("yes", pa.string(), "yes ", 1),
        (" yes\n", pa.string(), "yes ", 1),
        ("Yes", pa.string(), "yes", 0),
        ("ye", pa.string(), "yes", 0),
        (None, pa.string(), "None", 0),
        (3, pa.int64(), "3", 1),
        (3, pa.float64(), "3", 1),
        (2.5, pa.float64(), "2.5", 1),
    ],
)
def test_a_match_is_equal_but_for_blanks_around_it(
    tmp_path: Path, answer: Any, kind: pa.DataType, output: str, matches: int
) -> None:
    rows = table(good("1", output, want=answer), bad("2"), own=pa.schema([("want", kind)]))
    assert put(rows, sink(tmp_path, answer="want"))["mark"]["matches"] == matches


@pytest.mark.parametrize("kind", KINDS)
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
    put(table(good("1", x=value), own=pa.schema([("x", of)])), sink(tmp_path, kind))
    assert [row["output"] for row in all_rows(tmp_path)] == ["yes"]


def test_jsonl_is_json_even_where_a_float_is_no_number(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    own = pa.schema([("x", pa.float64())])
    rows = table(good("1", x=float("nan")), good("2", x=float("inf")), bad("3", x=float("-inf")), own=own)
    put(rows, sink(tmp_path, OutputFormat.jsonl))
    assert len(files(tmp_path)) == 2
    for name in files(tmp_path):
        for line in (tmp_path / name).read_text().splitlines():
            row = json.loads(line, parse_constant=refuse)
            json.loads(row.get("row", "{}"), parse_constant=refuse)


def test_a_line_separator_in_an_answer_stays_in_its_line(tmp_path: Path) -> None:
    put(table(good("1", "a\nb\u2028c\r")), sink(tmp_path, OutputFormat.jsonl))
    (line,) = (tmp_path / files(tmp_path)[0]).read_bytes().rstrip(b"\n").split(b"\n")
    assert json.loads(line)["output"] == "a\nb\u2028c\r"


def test_of_a_vector_its_beginning_is_shown(tmp_path: Path) -> None:
    rows = table(good("1", x="a"), good("2", x="b"))
    vectors = pa.array([[0.5, -0.25, 1.0, 2.0, 3.0], None], pa.list_(pa.float32()))
    got = put(rows.append_column(PREFIX + "embedding", vectors), sink(tmp_path))
    shown = [row[PREFIX + "embedding"] for row in got["sample"]]
    assert shown == ["5 numbers: 0.5000, -0.2500, 1.0000, 2.0000, ...", None]
