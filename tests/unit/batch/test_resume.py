"""What former runs left is found, what is not whole is done again, and another's folder is left alone.

One file, though it is long: each test plans the same ten rows in units of four, over a folder that was changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from plans import small_plan

from conf.errors import UserError
from conf.schema.output import OnChange
from pipelines.batch import source as source_module
from pipelines.batch.plan import Plan
from pipelines.batch.resume import MIN_UNIT_ROWS, Work, find_work, open_output
from pipelines.ledger.log import LogWriter, log_files
from pipelines.ledger.mark import Mark, read_mark
from pipelines.ledger.spec import read_spec
from pipelines.storage import Location


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plans a job over in.jsonl in units of four rows."""
    monkeypatch.setattr(source_module, "MARK_LINES", 4)
    return partial(small_plan, tmp_path)


@pytest.fixture(autouse=True)
def rows(tmp_path: Path) -> Callable[[list[str]], None]:
    """Writes the input; ten rows at first."""

    def write(texts: list[str]) -> None:
        (tmp_path / "in.jsonl").write_text("".join(json.dumps({"q": text}) + "\n" for text in texts))

    write(TEN)
    return write


TEN = [str(n) for n in range(10)]


def finish(plan: Plan, failed: int = 0) -> Work:
    """Does what is pending, as far as files show; so many rows of each unit fail."""
    work = open_output(plan)
    for unit in work.pending:
        plan.output.answers(unit.id).write_bytes(b"a" * unit.rows)
        plan.output.drop_other_formats(unit.id)
        if failed:
            plan.output.failed(unit.id).write_bytes(b"f" * failed)
        Mark(
            unit=unit.id,
            fingerprint=unit.fingerprint,
            run="r",
            answers=unit.rows - failed,
            failed=failed,
            answers_bytes=unit.rows,
            failed_bytes=failed,
        ).write(plan.output)
    return work


def places(work: Work) -> list[int]:
    """Which of all units are pending."""
    return [number for number, unit in enumerate(work.units) if unit in {one.id for one in work.pending}]


def test_a_new_folder_has_everything_to_do(plan: Callable[..., Plan]) -> None:
    one = plan()
    work = open_output(one)
    assert (places(work), work.done, work.pending_rows, work.done_rows) == ([0, 1, 2], [], 10, 0)
    assert not any(unit.has_former for unit in work.pending)
    spec = read_spec(one.output)
    assert spec is not None
    assert (spec.decides, spec.unit_rows, spec.job["data"]["prompt"]) == (one.decides, 4, "{{ q }}")


def test_the_same_command_again_has_nothing_to_do(plan: Callable[..., Plan]) -> None:
    finish(plan())
    work = open_output(plan())
    assert (work.readings, work.pending_rows, work.done_rows) == ([], 0, 10)


@pytest.mark.parametrize("place", ["answers", "failed"])
@pytest.mark.parametrize("size", [None, 0, 1, 99])
def test_a_unit_whose_file_is_cut_gone_or_grown_is_done_again(
    plan: Callable[..., Plan], place: str, size: int | None
) -> None:
    one = plan()
    unit = finish(one, failed=2).pending[1]
    path = Path(getattr(one.output, place)(unit.id).path)
    if size is None:
        path.unlink()
    else:
        path.write_bytes(b"x" * size)
    work = open_output(plan())
    assert places(work) == [1]
    assert work.pending[0].has_former
    assert work.done_rows == 6


@pytest.mark.parametrize("data", [None, b"", b"[]", b"{}"])
def test_a_unit_without_a_mark_that_can_be_read_is_done_again(plan: Callable[..., Plan], data: bytes | None) -> None:
    one = plan()
    path = Path(one.output.mark(finish(one).pending[0].id).path)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    assert places(open_output(plan())) == [0]


def test_a_unit_of_which_rows_are_missing_is_done_again(plan: Callable[..., Plan]) -> None:
    """The file was shorter when it was read than when it was looked at, and is whole again."""
    one = plan()
    unit = finish(one).pending[0]
    mark = read_mark(one.output, unit.id)
    assert mark is not None
    replace(mark, answers=unit.rows - 1).write(one.output)
    assert places(open_output(plan())) == [0]


@pytest.mark.parametrize("is_redrive", [False, True])
@pytest.mark.parametrize("run, left", [("r", 0), ("a redrive that crashed", 1)])
def test_a_log_that_a_crash_left_beside_its_mark_is_dropped(
    plan: Callable[..., Plan], run: str, left: int, is_redrive: bool
) -> None:
    """Else a redrive takes the failures in it for new ones."""
    one = plan()
    unit = finish(one, failed=1).pending[0].id
    log = LogWriter(one.output, unit, run, "replica")
    log.died("x")
    log.close()
    find_work(plan(), one.output, one.output.written(), 4, is_redrive=is_redrive)
    assert len(log_files(one.output, [unit])) == left


def test_a_changed_row_is_done_again_with_its_unit(plan: Callable[..., Plan], rows: Callable[..., None]) -> None:
    finish(plan())
    rows([*TEN[:5], "other", *TEN[6:]])
    work = open_output(plan())
    assert places(work) == [1]
    assert work.pending[0].has_former
    (reading,) = work.readings
    assert reading.wanted == {work.pending[0].id}


@pytest.mark.parametrize("more, wanted", [(1, [2]), (2, [2]), (3, [2, 3]), (9, [2, 3, 4])])
def test_rows_that_are_added_cost_the_last_unit(
    plan: Callable[..., Plan], rows: Callable[..., None], more: int, wanted: list[int]
) -> None:
    finish(plan())
    rows([*TEN, *["more"] * more])
    work = open_output(plan())
    assert places(work) == wanted
    assert [unit.has_former for unit in work.pending] == [True, False, False][: len(wanted)]


def test_a_folder_keeps_the_size_of_its_units(plan: Callable[..., Plan]) -> None:
    finish(plan())
    for nodes in ({"output": {"rows_per_file": 2}}, {"engine": {"num_replicas": 3}}):
        work = open_output(plan(**nodes))
        assert (work.unit_rows, places(work)) == (4, [])


@pytest.mark.parametrize(
    "number, replicas, most, unit_rows",
    [
        (10, 1, 10_000, MIN_UNIT_ROWS),
        (10, 1, 4, 4),
        (3200, 1, 10_000, 200),
        (3200, 4, 10_000, 50),
        (3200, 1, 60, 60),
        (5000, 2, 10_000, 157),  # 32 units, not 33: as many for each replica
    ],
)
def test_units_are_small_enough_to_balance_replicas_and_not_tiny(
    plan: Callable[..., Plan], rows: Callable[..., None], number: int, replicas: int, most: int, unit_rows: int
) -> None:
    rows(["x"] * number)
    assert open_output(plan(output={"rows_per_file": most}, engine={"num_replicas": replicas})).unit_rows == unit_rows


def test_a_trial_of_a_few_rows_does_not_make_units_tiny_for_ever(
    plan: Callable[..., Plan], rows: Callable[..., None]
) -> None:
    rows(["x"] * 16_000)
    big = {"rows_per_file": 10_000}
    open_output(plan(output=big, data={"limit": 10}))
    assert open_output(plan(output=big)).unit_rows == 1000


def test_another_job_is_refused_and_the_difference_named(plan: Callable[..., Plan]) -> None:
    finish(plan())
    before = plan().output.written()
    with pytest.raises(UserError) as caught:
        open_output(plan(sampling={"max_tokens": 64}))
    message = str(caught.value)
    assert "sampling.max_tokens is 64, it was 256" in message
    assert "output.on_change=recompute" in message
    assert "\n" not in message
    assert plan().output.written() == before


def recompute(plan: Callable[..., Plan], **nodes: dict[str, Any]) -> Plan:
    return plan(**{**nodes, "output": {"on_change": OnChange.recompute, **nodes.get("output", {})}})


def test_recomputing_forgets_the_marks_and_keeps_the_answers_to_look_at(plan: Callable[..., Plan]) -> None:
    finish(plan())
    other = recompute(plan, sampling={"max_tokens": 64})
    work = open_output(other)
    assert places(work) == [0, 1, 2]
    assert all(unit.has_former for unit in work.pending)
    assert not [name for name in other.output.written() if "done/" in name]
    finish(other)
    assert places(open_output(other)) == []
    with pytest.raises(UserError, match="max_tokens is 256, it was 64"):
        open_output(plan())


def test_recomputing_an_unchanged_job_computes_nothing(plan: Callable[..., Plan]) -> None:
    finish(plan())
    assert places(open_output(recompute(plan))) == []


@pytest.mark.parametrize("method", ["delete", "write_bytes"])
def test_a_crash_while_marks_are_forgotten_leaves_the_old_job(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    finish(plan())
    other = recompute(plan, sampling={"max_tokens": 64})
    calls, real = count(), getattr(Location, method)

    def crash(self: Location, *arguments: bytes) -> None:
        if method == "write_bytes" or next(calls) == 1:
            raise OSError("power cut")
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Location, method, crash)
        with pytest.raises(UserError, match="power cut"):
            open_output(other)
    assert places(open_output(other)) == [0, 1, 2]


def test_units_of_one_name_are_refused_before_one_overwrites_the_other(plan: Callable[..., Plan]) -> None:
    one = plan()
    twice = replace(one, source=replace(one.source, splits=[*one.source.splits, *one.source.splits]))
    with pytest.raises(UserError):
        open_output(twice)


def test_answers_of_rows_that_are_gone_do_not_stay_among_the_others(
    plan: Callable[..., Plan], rows: Callable[..., None]
) -> None:
    finish(plan())
    rows(TEN[:4])
    one = plan()
    finish(one)
    assert len([name for name in one.output.written() if name.startswith("part-")]) == 1


def test_rows_that_are_gone_for_a_while_are_not_paid_for_again(
    plan: Callable[..., Plan], rows: Callable[[list[str]], None]
) -> None:
    """Such as when the command is run once with half of its files."""
    finish(plan())
    rows(TEN[:4])
    finish(plan())
    rows(TEN)
    work = open_output(plan())
    assert all(unit.has_former for unit in work.pending)
    assert all(plan().output.answers(unit.id).exists() for unit in work.pending)


def test_a_smaller_limit_throws_no_paid_answers_away(plan: Callable[..., Plan]) -> None:
    finish(plan())
    assert places(open_output(plan(data={"limit": 6}))) == []


def test_a_redrive_does_the_units_with_failed_rows(plan: Callable[..., Plan], rows: Callable[..., None]) -> None:
    one = plan()
    finish(one)
    rows([*TEN, *["more"] * 6])
    finish(plan(), failed=1)
    work = find_work(plan(), one.output, one.output.written(), 4, is_redrive=True)
    assert places(work) == [2, 3]
    assert work.is_redrive
    assert all(unit.has_former for unit in work.pending)
    assert work.done_rows == 8


def test_a_redrive_wants_a_job_at_its_end(plan: Callable[..., Plan], rows: Callable[..., None]) -> None:
    one = plan()
    finish(one, failed=1)
    rows([*TEN, "more"])
    with pytest.raises(UserError, match=r"in\.jsonl is not done or has changed; run manta batch first"):
        find_work(plan(), one.output, one.output.written(), 4, is_redrive=True)
