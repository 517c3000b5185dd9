"""A unit's rows and its requests: each answer goes to the rows that asked for it, and is counted where it came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from conf.schema.output import OutputFormat
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.answers import PREFIX, answer_names
from pipelines.batch.commit import Sink, commit
from pipelines.batch.unit import Parcel, Unit
from pipelines.batch.unit_answer import UnitAnswer
from pipelines.batch.unit_run import Found
from pipelines.ledger.folder import Folder
from pipelines.ledger.lease import lease_file
from pipelines.ledger.mark import read_mark
from pipelines.storage import locate
from serve.engine.protocol import Completion, Outcome, Rejection, Sample

UNIT = "0123456789ab"
A, B, C = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(root=locate(str(tmp_path), "output.path"), suffix="parquet")


def said(text: str, request_id: str = "") -> Completion:
    sample = Sample(text=text, finish_reason="stop", completion_tokens=3)
    return Completion(request_id=request_id, samples=(sample,), prompt_tokens=5)


def rejected(error: str = "too_long") -> Rejection:
    return Rejection(request_id="", error=error, message=f"says {error}")


def replica(folder: Folder, is_redrive: bool = False) -> Any:
    return SimpleNamespace(
        folder=folder,
        prefix="",
        task=Task.generate,
        is_redrive=is_redrive,
        sampling=SamplingSpec(),
        answer_names=answer_names(Task.generate),
        labels=[],
    )


def parcel(*keys: str | None, ids: tuple[str, ...] | None = None, has_former: bool = False, drawn: str = "") -> Parcel:
    """A unit as `identify` leaves it: a row for each key, null for a bad one; ``drawn`` parts equal requests."""
    places = range(1, len(keys) + 1)
    columns = {
        c.ROW_ID: list(ids or map(str, places)),
        c.SOURCE: ["in.jsonl"] * len(keys),
        c.POSITION: list(places),
        c.ERROR: [None if key else "malformed_line" for key in keys],
        c.MESSAGE: [None if key else "bad" for key in keys],
        c.RAW: [None if key else "{" for key in keys],
        c.TOKENS: [[ord(key[0]), 1] if key else None for key in keys],
        c.REQUEST_KEY: list(keys),
        c.ENTRY: [f"{key}:{place}" if key and drawn else key for key, place in zip(keys, places, strict=True)],
        **{name: [None] * len(keys) for name in (c.SPLIT, c.ADAPTER, c.SAMPLING)},
    }
    table = pa.table({"q": [f"row {place}" for place in places]})
    for name, values in columns.items():
        table = c.with_column(table, name, values)
    unit = Unit(id=UNIT, fingerprint="f", rows=len(keys), has_former=has_former)
    return Parcel(unit=unit, table=table, note={})


def answered(done: Parcel) -> list[tuple[str, str | None, str | None, int]]:
    """Row id, output, error and attempts of each row."""
    names = (c.ROW_ID, PREFIX + "output", c.ERROR, c.ATTEMPTS)
    return list(zip(*(done.table.column(name).to_pylist() for name in names), strict=True))


def write(folder: Folder, done: Parcel) -> None:
    lease_file(folder, "run").write_bytes(b"")
    sink = Sink(
        folder=folder,
        run="run",
        format=OutputFormat(folder.suffix),
        prefix="",
        answer_column=None,
        model="m",
        task=Task.generate,
    )
    commit([done], sink)


def test_rows_that_ask_the_same_make_one_request_and_all_get_its_answer(folder: Folder) -> None:
    one = UnitAnswer(replica(folder), parcel(A, B, A, None, A))
    assert {entry: waiting.request().token_ids for entry, waiting in one.requests.items()} == {A: [97, 1], B: [98, 1]}
    assert len({waiting.id for waiting in one.requests.values()}) == 2
    done = one.parcel(Found(outcomes={A: said("of a"), B: rejected()}))
    assert answered(done) == [
        ("1", "of a", None, 1),
        ("2", None, "too_long", 1),
        ("3", "of a", None, 1),
        ("4", None, "malformed_line", 0),
        ("5", "of a", None, 1),
    ]
    assert done.note["is_partial"] is False
    assert c.TOKENS not in done.table.column_names


def test_counts_say_where_answers_came_from(folder: Folder) -> None:
    one = UnitAnswer(replica(folder), parcel(A, A, B, B, C, None))
    found = Found(outcomes={A: said("a"), B: said("b"), C: said("c")}, replayed={B}, shared={C})
    assert one.parcel(found).note["counts"] == {
        "requests": 1,
        "engine_prompt_tokens": 5,
        "engine_completion_tokens": 3,
        "replayed": 1,
        "shared": 3,
        "saved_tokens": 3 * 8,
    }


def test_attempts_are_deaths_and_the_time_that_it_ran(folder: Folder) -> None:
    one = UnitAnswer(replica(folder), parcel(A, B, C))
    found = Found(outcomes={A: said("a"), B: said("b"), C: rejected("engine_killer")}, replayed={B}, given_up={C})
    found.attempts.update({A: 2, B: 1, C: 4})
    assert [attempts for _, _, _, attempts in answered(one.parcel(found))] == [3, 1, 4]


def test_rows_whose_requests_have_not_ended_are_left_to_the_next_run(folder: Folder) -> None:
    one = UnitAnswer(replica(folder), parcel(A, B, None, A))
    done = one.parcel(Found(outcomes={A: said("a")}))
    assert [row_id for row_id, *_ in answered(done)] == ["1", "3", "4"]
    assert done.note["is_partial"] is True


def done_before(folder: Folder, before: Parcel, outcomes: dict[str, Outcome]) -> None:
    """Leaves part files behind."""
    write(folder, UnitAnswer(replica(folder), before).parcel(Found(outcomes=outcomes)))


def test_what_a_former_part_file_holds_is_recalled_for_unchanged_rows(folder: Folder) -> None:
    done_before(folder, parcel(A, B), {A: said("a"), B: said("b")})
    one = UnitAnswer(replica(folder), parcel(A, C, has_former=True))
    assert one.former == {A: said("a")}
    assert UnitAnswer(replica(folder), parcel(A, C)).former == {}


def test_an_answer_stands_in_one_format_alone(folder: Folder) -> None:
    done_before(folder, parcel(A, B), {A: said("a"), B: rejected()})
    other = replace(folder, suffix="jsonl")
    one = UnitAnswer(replica(other), parcel(A, B, has_former=True))
    write(other, one.parcel(Found(outcomes={A: said("a"), B: rejected()})))
    parts = {name for name in other.written() if "part-" in name}
    assert parts == {f"part-{UNIT}.jsonl", f"failed/part-{UNIT}.jsonl"}


def test_an_answer_that_was_drawn_goes_back_to_its_row_alone(folder: Folder) -> None:
    done_before(folder, parcel(A, A, drawn=":"), {f"{A}:1": said("one"), f"{A}:2": said("two")})
    one = UnitAnswer(replica(folder), parcel(A, A, A, has_former=True, drawn=":"))
    assert one.former == {f"{A}:1": said("one"), f"{A}:2": said("two")}


def redriven(folder: Folder, asked: Parcel, answer: str = "new") -> list[tuple[str, str | None, str | None]]:
    """Redrives a unit whose every open request is answered; returns row id, output and error of each row."""
    one = UnitAnswer(replica(folder, is_redrive=True), asked)
    found = Found(outcomes={entry: one.former.get(entry, said(answer)) for entry in one.requests})
    return [row[:3] for row in answered(one.parcel(found))]


def test_a_redrive_keeps_answers_and_asks_what_failed_though_it_asks_otherwise(folder: Folder) -> None:
    done_before(folder, parcel(A, B, None), {A: said("old"), B: rejected()})
    got = redriven(folder, parcel("d" * 32, "e" * 32, None, has_former=True))
    assert got == [("1", "old", None), ("2", "new", None), ("3", None, "malformed_line")]


def test_a_redrive_asks_again_what_killed_engines(folder: Folder) -> None:
    done_before(folder, parcel(A), {A: rejected("engine_killer")})
    assert redriven(folder, parcel(A, has_former=True)) == [("1", "new", None)]


def test_an_answered_row_keeps_the_key_of_what_it_was_asked(folder: Folder) -> None:
    done_before(folder, parcel(A, B), {A: said("old"), B: rejected()})
    one = UnitAnswer(replica(folder, is_redrive=True), parcel(C, C, has_former=True))
    done = one.parcel(Found(outcomes={entry: one.former.get(entry, said("new")) for entry in one.requests}))
    assert done.table.column(c.REQUEST_KEY).to_pylist() == [A, C]


def test_in_a_redrive_rows_of_one_id_do_not_get_each_others_answers(folder: Folder) -> None:
    """Ids are the user's: two rows may have the same one."""
    ids = ("same", "same", "same")
    done_before(folder, parcel(A, B, C, ids=ids), {A: said("of a"), B: rejected(), C: said("of c")})
    got = redriven(folder, parcel(A, B, C, ids=ids, has_former=True))
    assert got == [("same", "of a", None), ("same", "new", None), ("same", "of c", None)]


def test_a_redrive_that_is_stopped_leaves_the_unit_as_it_was(folder: Folder) -> None:
    """Its files and its mark belong together; what was paid for is in the log."""
    done_before(folder, parcel(A, B, C), {A: said("old"), B: rejected(), C: rejected()})
    one = UnitAnswer(replica(folder, is_redrive=True), parcel(A, B, C, has_former=True))
    write(folder, one.parcel(Found(outcomes={**one.former, B: said("new")})))
    mark = read_mark(folder, UNIT)
    assert mark is not None
    assert mark.is_whole(folder, folder.written())
