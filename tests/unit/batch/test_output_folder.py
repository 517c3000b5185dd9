"""The output folder before a job: what another left there is refused or deleted, what is the user's is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plans import small_plan

from conf.errors import UserError
from conf.schema.data import DataFormat
from conf.schema.engine import EngineKind
from conf.schema.output import OnChange
from pipelines.batch.identify import request_salt
from pipelines.batch.plan import Plan
from pipelines.batch.resume import open_output
from pipelines.storage import Location

PART = "part-0123456789ab.parquet"
OURS = [PART, f"failed/{PART}", "_manta/job.json", "_manta/spec.json", "_manta/done/0123456789ab.json"]
OURS += ["_manta/log/0123456789ab.run.replica.jsonl", "_manta/logs/driver.log", f"{PART}.0a1b2c3d.tmp"]
OTHERS = ["notes.txt", "sub/part-x.parquet", "part-list.txt", "failed/why.md", "_manta/mine.txt"]


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    (tmp_path / "in.jsonl").write_text('{"q": "a"}\n{"q": "b"}\n')
    return partial(small_plan, tmp_path)


def refused(plan: Plan) -> str:
    with pytest.raises(UserError) as caught:
        open_output(plan)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill(out: Path, names: list[str]) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("is_over", [False, True])
def test_files_that_answers_would_be_read_with_are_refused(
    plan: Callable[..., Plan], tmp_path: Path, is_over: bool
) -> None:
    fill(tmp_path / "out", ["older.parquet", "more.parquet/part-0", "notes.txt", "sub/x.parquet"])
    message = refused(plan(output={"overwrite": is_over}))
    assert "it holds more.parquet, which no job of Manta wrote" in message
    assert not (tmp_path / "out" / "_manta").exists()


def test_files_of_another_kind_stay_beside_the_answers(plan: Callable[..., Plan], tmp_path: Path) -> None:
    others = {*OTHERS, "input.jsonl", "_metadata.parquet", ".hidden.parquet"}
    fill(tmp_path / "out", sorted(others))
    open_output(plan())
    assert files(tmp_path / "out") >= others


def test_what_lies_beside_a_job_s_answers_later_does_not_keep_it_from_going_on(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    open_output(plan())
    fill(tmp_path / "out", ["mine.parquet"])
    open_output(plan())
    open_output(plan(output={"on_change": OnChange.recompute}, sampling={"max_tokens": 3}))


REQUEST = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}\n'
REQUESTS: dict[str, Any] = {"prompt": None, "format": DataFormat.openai_batch}


@pytest.mark.parametrize("is_over", [False, True])
def test_joined_answers_replace_no_file_of_the_users(plan: Callable[..., Plan], tmp_path: Path, is_over: bool) -> None:
    (tmp_path / "in.jsonl").write_text(REQUEST)
    fill(tmp_path / "out", ["errors.jsonl"])
    assert "it holds errors.jsonl" in refused(plan(data=REQUESTS, output={"overwrite": is_over}))
    assert (tmp_path / "out" / "errors.jsonl").read_text() == "x"


def test_nor_after_a_job_that_joined_none(plan: Callable[..., Plan], tmp_path: Path) -> None:
    open_output(plan())
    fill(tmp_path / "out", ["output.jsonl"])
    (tmp_path / "in.jsonl").write_text(REQUEST)
    assert "it holds output.jsonl" in refused(plan(data=REQUESTS, output={"on_change": OnChange.recompute}))


def test_a_job_s_own_joined_answers_go_when_it_is_overwritten(plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(REQUEST)
    open_output(plan(data=REQUESTS))
    fill(tmp_path / "out", ["output.jsonl"])  # as if it had run
    open_output(plan(data=REQUESTS))
    open_output(plan(data=REQUESTS, output={"overwrite": True}))
    assert not (tmp_path / "out" / "output.jsonl").exists()


@pytest.mark.parametrize("is_over", [False, True])
def test_joined_answers_do_not_replace_the_input(plan: Callable[..., Plan], tmp_path: Path, is_over: bool) -> None:
    source = tmp_path / "out" / "output.jsonl"
    source.parent.mkdir()
    source.write_text(REQUEST)
    message = refused(plan(data={**REQUESTS, "input": str(source)}, output={"overwrite": is_over}))
    assert "its output.jsonl is the input" in message
    assert source.read_text() == REQUEST


TALK = [{"role": "user", "content": "why"}]


def talks(tmp_path: Path, *files: list[Any]) -> dict[str, Any]:
    """Writes files of one column, and returns the node `data` that says it holds messages."""
    folder = tmp_path / "talks"
    folder.mkdir()
    for number, values in enumerate(files):
        lines = [value if value == "{" else json.dumps({"talk": value}) for value in values]
        (folder / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return {"prompt": None, "messages": "talk", "input": str(folder)}


@pytest.mark.parametrize("values", [["why"], ["why", None], [3, 4], ["[]"], ['["why"]'], ["why"] * 200])
def test_a_column_without_any_messages_is_refused(plan: Callable[..., Plan], tmp_path: Path, values: list[Any]) -> None:
    assert "data.messages names the column 'talk'" in refused(plan(data=talks(tmp_path, values)))
    assert not (tmp_path / "out" / "_manta").exists()


@pytest.mark.parametrize(
    "several",
    [
        [["why", None, json.dumps(TALK)]],
        [[None], [json.dumps(TALK)]],
        [[None] * 300 + [json.dumps(TALK)]],
        [["{"] * 120 + [json.dumps(TALK)]],
        [[None]],
        [[TALK]],
    ],
)
def test_one_row_of_messages_is_enough_and_nulls_say_nothing(
    plan: Callable[..., Plan], tmp_path: Path, several: list[list[Any]]
) -> None:
    open_output(plan(data=talks(tmp_path, *several)))


def test_a_job_that_goes_on_is_not_asked_again(plan: Callable[..., Plan], tmp_path: Path) -> None:
    data = talks(tmp_path, [json.dumps(TALK)])
    open_output(plan(data=data))
    (tmp_path / "talks" / "0.jsonl").write_text('{"talk": "why"}\n')
    open_output(plan(data=data))


def test_a_file_that_cannot_be_read_is_left_to_the_job(plan: Callable[..., Plan], tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    pq.write_table(pa.table({"talk": [json.dumps(TALK)] * 50}), folder / "a.parquet")
    raw = bytearray((folder / "a.parquet").read_bytes())
    raw[4:40] = b"\xff" * 36
    (folder / "a.parquet").write_bytes(raw)
    open_output(plan(data={"prompt": None, "messages": "talk", "input": str(folder)}))


@pytest.mark.parametrize("former", [PART, "part-0123456789ab.jsonl", f"failed/{PART}"])
def test_part_files_without_a_job_are_refused_and_left_alone(
    plan: Callable[..., Plan], tmp_path: Path, former: str
) -> None:
    fill(tmp_path / "out", [former])
    message = refused(plan())
    assert message.startswith("output.path=")
    assert "output.overwrite=true" in message
    assert files(tmp_path / "out") == {former}


def test_a_job_that_cannot_be_read_is_refused_and_left_alone(plan: Callable[..., Plan], tmp_path: Path) -> None:
    fill(tmp_path / "out", ["_manta/spec.json", PART])
    assert refused(plan()).startswith("output.path=")
    assert (tmp_path / "out" / "_manta" / "spec.json").read_text() == "x"


def test_a_users_own_files_make_no_former_job(plan: Callable[..., Plan], tmp_path: Path) -> None:
    fill(tmp_path / "out", OTHERS)
    open_output(plan())
    assert files(tmp_path / "out") == {*OTHERS, "_manta/spec.json"}


def test_overwriting_deletes_a_former_jobs_files_and_no_others(plan: Callable[..., Plan], tmp_path: Path) -> None:
    fill(tmp_path / "out", [*OURS, *OTHERS])
    work = open_output(plan(output={"overwrite": True}))
    assert files(tmp_path / "out") == {*OTHERS, "_manta/spec.json"}
    assert work.pending_rows == 2
    assert not any(unit.has_former for unit in work.pending)


def test_overwriting_starts_with_the_marks_so_that_nothing_cut_short_looks_done(
    plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "out", [*OURS, "_manta/done/aaaaaaaaaaaa.json", "part-aaaaaaaaaaaa.parquet"])
    deleted: list[str] = []
    delete = Location.delete

    def watch(self: Location) -> None:
        deleted.append(self.path)
        delete(self)

    monkeypatch.setattr(Location, "delete", watch)
    open_output(plan(output={"overwrite": True}))
    are_marks = ["/done/" in path for path in deleted]
    assert are_marks == sorted(are_marks, reverse=True)
    assert are_marks.count(True) == 2


@pytest.mark.parametrize("place", ["", "failed"])
def test_overwriting_never_deletes_the_input(plan: Callable[..., Plan], tmp_path: Path, place: str) -> None:
    path = tmp_path / "out" / place / PART
    fill(tmp_path / "out", ["part-0123456789ac.parquet"])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"q": ["a"]}), path)
    before = files(tmp_path / "out")
    assert refused(plan(data={"input": str(path)}, output={"overwrite": True})).startswith("output.overwrite=true")
    assert files(tmp_path / "out") == before


def test_an_output_path_that_is_a_file_or_below_one_is_refused(plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        assert refused(plan(output={"path": str(path)})).startswith(f"output.path={path}: ")
    assert (tmp_path / "file").read_text() == "x"


def test_an_output_below_the_input_is_not_read_when_the_command_is_run_again(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in.jsonl").write_text('{"q": "a"}\n')
    where = {"data": {"input": str(tmp_path / "data")}, "output": {"path": str(tmp_path / "data" / "out")}}
    one = plan(**where)
    (unit,) = open_output(one).pending
    one.output.answers(unit.id).write_bytes(b"")
    pq.write_table(pa.table({"q": ["a"], "output": ["b"]}), one.output.answers(unit.id).path)
    again = plan(**where)
    assert [split.name for split in again.source.splits] == ["in.jsonl"]


@pytest.mark.parametrize("named", ["data/in.jsonl", "data", "data/", "data/*.jsonl", "data/../data"])
def test_a_file_has_the_same_units_however_its_folder_is_named(
    plan: Callable[..., Plan], tmp_path: Path, named: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in.jsonl").write_text('{"q": "a"}\n')
    ids = [
        [unit.id for unit in open_output(plan(data={"input": f"{tmp_path}/{name}"})).pending]
        for name in ("data/in.jsonl", named)
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    "engine", [{"vllm": {"quantization": "fp8"}}, {"vllm": {"seed": 1}}, {"kind": EngineKind.vllm}], ids=str
)
def test_an_engine_that_answers_otherwise_makes_other_requests(
    plan: Callable[..., Plan], engine: dict[str, Any]
) -> None:
    """Else output.on_change=recompute finds the old answers in the old files and keeps them."""
    salts = [
        request_salt(i.model_fingerprint, i.task, i.sampling) for i in (plan().identity, plan(engine=engine).identity)
    ]
    assert salts[0] != salts[1]
