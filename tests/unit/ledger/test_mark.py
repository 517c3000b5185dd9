"""Done-marks: what they say comes back, and a file that is not as they say is not whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from pipelines.ledger.folder import Folder
from pipelines.ledger.mark import Mark, mark_of, read_mark, read_marks
from pipelines.storage import Location, locate

UNIT = "0123456789ab"


@pytest.fixture(params=["local", "other"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(root=locate(str(tmp_path), "output.path"), suffix="jsonl")
    tree = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return Folder(root=Location(filesystem=tree, path="out"), suffix="jsonl")


def mark(unit: str = UNIT, **fields: Any) -> Mark:
    known = {"fingerprint": "f", "run": "r", "answers": 2, "failed": 1, "answers_bytes": 10, "failed_bytes": 5}
    return Mark(unit=unit, **{**known, **fields})


def test_a_mark_comes_back_as_it_was_written(folder: Folder) -> None:
    written = mark(errors={"too_long": (3, "ü: 5 > 4"), "x": (1, "")}, matches=1, saved_tokens=9)
    written.write(folder)
    assert read_mark(folder, UNIT) == written


def test_a_unit_without_a_mark_has_none(folder: Folder) -> None:
    assert read_mark(folder, UNIT) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"5",
        b"[]",
        b'"text"',
        b"{}",
        b'{"unit": "0123456789ab"}',
        b'{"errors": []}',
        b'{"errors": {"x": 1}}',
    ],
)
def test_a_mark_that_cannot_be_understood_is_none(folder: Folder, data: bytes) -> None:
    folder.mark(UNIT).write_bytes(data)
    assert read_mark(folder, UNIT) is None
    assert read_marks(folder, [UNIT]) == {}


def test_a_field_of_a_later_version_is_passed_over_and_one_that_is_new_has_its_default() -> None:
    plain = {"unit": UNIT, "fingerprint": "f", "run": "r", "answers": 2, "failed": 1}
    got = mark_of({**plain, "answers_bytes": 10, "failed_bytes": 5, "of_tomorrow": [1]})
    assert got == mark()


def test_many_marks_are_read_and_those_that_are_missing_left_out(folder: Folder) -> None:
    units = [f"{number:012x}" for number in range(40)]
    for unit in units[::2]:
        mark(unit).write(folder)
    assert read_marks(folder, units) == {unit: mark(unit) for unit in units[::2]}


def write_parts(folder: Folder, answers: int, failed: int) -> None:
    for place, size in ((folder.answers(UNIT), answers), (folder.failed(UNIT), failed)):
        if size:
            place.write_bytes(b"x" * size)


@pytest.mark.parametrize(
    "answers, failed, is_whole",
    [(10, 5, True), (9, 5, False), (10, 4, False), (0, 5, False), (10, 0, False), (11, 5, False)],
)
def test_a_unit_is_whole_where_both_files_have_the_sizes_that_its_mark_names(
    folder: Folder, answers: int, failed: int, is_whole: bool
) -> None:
    write_parts(folder, answers, failed)
    assert mark().is_whole(folder, folder.written()) is is_whole


def test_a_unit_without_failed_rows_has_no_file_of_them(folder: Folder) -> None:
    write_parts(folder, 10, 0)
    assert mark(failed_bytes=0).is_whole(folder, folder.written())
    write_parts(folder, 10, 5)
    assert not mark(failed_bytes=0).is_whole(folder, folder.written())


def test_a_part_file_of_another_format_is_not_the_units(folder: Folder) -> None:
    folder.root.join(f"part-{UNIT}.parquet").write_bytes(b"x" * 10)
    assert not mark(failed_bytes=0).is_whole(folder, folder.written())
