"""What former part files hold is found again; what they cannot be asked for costs no job."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.schema.task import Task
from pipelines.batch.answers import answer_columns, answer_names
from pipelines.batch.commit import FAILED_SCHEMA, json_text
from pipelines.batch.former import Former, read_former, read_letters
from pipelines.ledger.folder import Folder
from pipelines.storage import locate
from serve.engine.protocol import Completion, Outcome, Pooled, Rejection, Sample

UNIT = "0123456789ab"
A, B, C = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture(params=["parquet", "jsonl"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(root=locate(str(tmp_path), "output.path"), suffix=request.param)


def said(text: str) -> Completion:
    sample = Sample(text=text, finish_reason="stop", completion_tokens=1)
    return Completion(request_id="", samples=(sample,), prompt_tokens=2)


def killer(message: str = "it died") -> Rejection:
    return Rejection(request_id="", error="engine_killer", message=message)


def write(place: Any, table: pa.Table) -> None:
    if place.path.endswith("parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        place.write_bytes(sink.getvalue().to_pybytes())
    else:
        place.write_bytes(b"".join(json_text(row).encode() + b"\n" for row in table.to_pylist()))


def write_answers(
    folder: Folder,
    rows: list[tuple[str, str, Any]],
    prefix: str = "",
    task: Task = Task.generate,
    own: dict[str, Any] | None = None,
) -> None:
    """Writes answers: row id, key, outcome."""
    ids, keys, outcomes = zip(*rows, strict=True)
    columns = answer_columns(outcomes, task, answer_names(task))
    ours = {**columns, "request_key": pa.array(keys), "row_id": pa.array(ids)}
    table = pa.table({**(own or {"x": ["own"] * len(rows)}), **{prefix + name: array for name, array in ours.items()}})
    write(folder.answers(UNIT), table)


def write_failed(folder: Folder, *letters: tuple[str, str | None, str]) -> None:
    """Writes dead letters: row id, key, error."""
    rows = [{"row_id": i, "request_key": k, "error": e, "message": "it died", "attempts": 1} for i, k, e in letters]
    write(folder.failed(UNIT), pa.Table.from_pylist(rows, schema=FAILED_SCHEMA))


def read(folder: Folder, prefix: str = "", task: Task = Task.generate) -> Former:
    return read_former(folder, UNIT, prefix, task)


@pytest.mark.parametrize("prefix", ["", "m_"])
def test_answers_are_found_by_row_and_by_request(folder: Folder, prefix: str) -> None:
    write_answers(folder, [("1", A, said("one")), ("2", B, said("two"))], prefix)
    former = read(folder, prefix)
    assert former.by_row == {(A, "1"): said("one"), (B, "2"): said("two")}
    assert former.rows == [(A, said("one")), (B, said("two"))]
    assert former.by_key == {A: said("one"), B: said("two")}


def test_an_unchanged_row_keeps_its_answer_and_a_changed_one_does_not(folder: Folder) -> None:
    write_answers(folder, [("1", A, said("one")), ("2", B, said("two"))])
    former = read(folder)
    assert former.outcome(A, A, "1") == said("one")
    assert former.outcome(C, C, "1") is None


def test_equal_requests_share_an_answer_and_drawn_ones_do_not(folder: Folder) -> None:
    write_answers(folder, [("1", A, said("one"))])
    former = read(folder)
    assert former.outcome(A, A, "other row") == said("one")
    assert former.outcome(f"{A}:2", A, "other row") is None
    assert former.outcome(f"{A}:7", A, "1") == said("one")  # this very row, which has moved


def test_each_drawn_answer_goes_back_to_its_own_row(folder: Folder) -> None:
    write_answers(folder, [("1", A, said("one")), ("2", A, said("two"))])
    former = read(folder)
    assert [former.outcome(f"{A}:{n}", A, str(n)) for n in (1, 2)] == [said("one"), said("two")]


def test_rows_of_one_id_keep_each_its_own_answer(folder: Folder) -> None:
    """Ids are the user's: two rows may have the same one."""
    write_answers(folder, [("same", A, said("one")), ("same", B, said("two"))])
    former = read(folder)
    assert [former.outcome(f"{key}:{n}", key, "same") for n, key in enumerate((A, B))] == [said("one"), said("two")]


def test_what_kills_engines_is_not_asked_again_and_other_failures_are(folder: Folder) -> None:
    write_failed(folder, ("1", A, "engine_killer"), ("2", B, "prompt_too_long"), ("3", None, "malformed_line"))
    former = read(folder)
    assert former.outcome(A, A, "1") == killer()
    assert former.outcome(B, B, "2") is None
    assert former.by_row == {}


def test_what_kills_engines_kills_them_whether_its_answer_is_drawn_or_not(folder: Folder) -> None:
    write_failed(folder, ("1", A, "engine_killer"))
    former = read(folder)
    assert former.outcome(f"{A}:1", A, "1") == killer()
    assert former.outcome(f"{A}:2", A, "2") == killer()


def test_dead_letters_come_back(folder: Folder) -> None:
    write_failed(folder, ("1", A, "engine_killer"), ("3", None, "malformed_line"))
    letters = read_letters(folder, UNIT)
    assert [(one["row_id"], one["request_key"], one["error"]) for one in letters] == [
        ("1", A, "engine_killer"),
        ("3", None, "malformed_line"),
    ]


def test_a_unit_without_files_holds_nothing(folder: Folder) -> None:
    assert read(folder) == Former()
    assert read_letters(folder, UNIT) == []


@pytest.mark.parametrize("data", [b"", b"\n", b"{", b"PAR1", b"\xff\xfe", b"[1]\n", b"5\n", b'"x"\n'])
def test_a_file_that_is_broken_holds_nothing(folder: Folder, data: bytes) -> None:
    folder.answers(UNIT).write_bytes(data)
    folder.failed(UNIT).write_bytes(data)
    assert read(folder) == Former()


@pytest.mark.parametrize("cut", [1, 2, 20, 100, 500])
def test_of_a_file_that_was_cut_whole_rows_count_and_no_others(folder: Folder, cut: int) -> None:
    rows = [(str(n), f"{n:032x}", said("x" * 50)) for n in range(9)]
    write_answers(folder, rows)
    place = folder.answers(UNIT)
    lines = place.read_bytes().split(b"\n")
    left = place.read_bytes()[:-cut]
    place.write_bytes(left)
    whole = sum(line in lines for line in left.split(b"\n") if line) if folder.suffix == "jsonl" else 0
    assert [row_id for _, row_id in read(folder).by_row] == [row_id for row_id, _, _ in rows[:whole]]


@pytest.mark.parametrize("prefix", ["m_", "output"])
def test_a_file_of_another_prefix_holds_nothing(folder: Folder, prefix: str) -> None:
    write_answers(folder, [("1", A, said("one"))])
    assert read(folder, prefix) == Former()


@pytest.mark.parametrize("asked", Task)
@pytest.mark.parametrize("written", Task)
def test_a_file_of_another_task_holds_nothing(folder: Folder, written: Task, asked: Task) -> None:
    """output.on_change=recompute goes on in a folder whose job asked something else."""
    vector = Pooled(request_id="", vector=struct.pack("<f", 0.5), prompt_tokens=2)
    outcome: Outcome = said("one") if written is Task.generate else vector
    write_answers(folder, [("1", A, outcome)], task=written)
    former = read(folder, task=asked)
    assert former.by_key == ({A: outcome} if asked is written else {})


@pytest.mark.parametrize(
    "own",
    [
        pa.array([2**64 - 1], pa.uint64()),
        pa.array([[]], pa.list_(pa.int64())),
        pa.array([{}], pa.struct([])),
        pa.array([None], pa.null()),
        pa.array([b"\xff"], pa.binary()),
        pa.array([float("nan")]),
    ],
)
def test_no_column_of_the_users_keeps_answers_from_being_found(tmp_path: Path, own: pa.Array) -> None:
    folder = Folder(root=locate(str(tmp_path), "output.path"), suffix="jsonl")
    write_answers(folder, [("1", A, said("one"))], own={"x": own})
    assert read(folder).by_key == {A: said("one")}


@pytest.mark.parametrize("values", [[1, "a"], [{"a": 1}, [1]], [1, [2]], [True, 1.5]])
def test_a_json_column_of_several_kinds_keeps_no_answers_from_being_found(tmp_path: Path, values: list[Any]) -> None:
    folder = Folder(root=locate(str(tmp_path), "output.path"), suffix="jsonl")
    write_answers(folder, [("1", A, said("one")), ("2", B, said("two"))])
    lines = [json.loads(line) for line in folder.answers(UNIT).read_bytes().splitlines()]
    edited = [{**line, "x": value} for line, value in zip(lines, values, strict=True)]
    folder.answers(UNIT).write_bytes("".join(json.dumps(line) + "\n" for line in edited).encode())
    assert set(read(folder).by_key) == {A, B}
