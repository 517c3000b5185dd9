from __future__ import annotations

import io
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conf.errors import UserError
from serve.batches.records import Kind, Object, Records
from serve.batches.shelf import Shelf, batch_object

ASKED = {"input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "1h", "metadata": None}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "kept", now=lambda: 1000.0)


def put(shelf: Shelf, owner: str = "one", content: bytes = b"abc", **more: str) -> Object:
    return shelf.put(owner, io.BytesIO(content), "in.jsonl", "batch", **more)  # type: ignore[arg-type]


def test_a_file_is_kept_whole_and_for_its_owner_alone(shelf: Shelf):
    value = put(shelf)
    assert (value["bytes"], value["created_at"], value["filename"]) == (3, 1000, "in.jsonl")
    path = shelf.content(value["id"])
    assert path.read_bytes() == b"abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(shelf.root.stat().st_mode) == 0o700
    assert shelf.records.get(Kind.file, "one", value["id"]) == value
    assert shelf.records.get(Kind.file, "two", value["id"]) is None
    assert shelf.records.get(Kind.batch, "one", value["id"]) is None
    assert not shelf.drop("two", value["id"])
    assert shelf.drop("one", value["id"])
    assert not path.exists()


def test_a_file_that_is_refused_leaves_nothing(shelf: Shelf):
    def limit(num_open: int, num_bytes: int) -> None:
        assert (num_open, num_bytes) == (1, 3)
        raise ValueError("full")

    put(shelf)
    with pytest.raises(ValueError, match="full"):
        shelf.put("one", io.BytesIO(b"more"), "in.jsonl", "batch", limit)
    assert len(list((shelf.root / "files").iterdir())) == 1


def test_a_file_that_is_made_again_is_there_once(shelf: Shelf):
    first, second = put(shelf, own="x/output"), put(shelf, content=b"other", own="x/output")
    assert first["id"] == second["id"]
    assert shelf.content(second["id"]).read_bytes() == b"other"
    assert shelf.records.page(Kind.file, "one", 10) == ([second], False)


@pytest.mark.parametrize("name", ["", "file-", "../records.sqlite", "file-" + "0" * 31 + "/", "file-" + "G" * 32])
def test_what_is_no_id_is_no_path(shelf: Shelf, name: str):
    with pytest.raises(ValueError, match="no id"):
        shelf.content(name)
    assert not shelf.drop("one", name)


def test_pages_go_on_after_an_object(shelf: Shelf):
    ids = [put(shelf)["id"] for _ in range(5)]
    put(shelf, owner="two")
    found, has_more = shelf.records.page(Kind.file, "one", 2)
    assert ([value["id"] for value in found], has_more) == (ids[:2:-1], True)
    found, has_more = shelf.records.page(Kind.file, "one", 9, after=ids[3])
    assert ([value["id"] for value in found], has_more) == (ids[2::-1], False)
    found, has_more = shelf.records.page(Kind.file, "one", 9, after=ids[3], is_oldest_first=True)
    assert ([value["id"] for value in found], has_more) == (ids[4:], False)
    with pytest.raises(KeyError):
        shelf.records.page(Kind.file, "two", 9, after=ids[0])


def test_changes_of_many_at_once_are_not_lost(shelf: Shelf):
    batch = batch_object(ASKED, 1000, 60)
    shelf.records.add(Kind.batch, "one", batch)
    other = Records(shelf.root / "records.sqlite")

    def count(number: int) -> None:
        records = shelf.records if number % 2 else other
        records.change(batch["id"], lambda now: {**now, "expires_at": now["expires_at"] + 1})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(100)))
    found = shelf.records.get(Kind.batch, "one", batch["id"])
    assert found == {**batch, "expires_at": 1160}


def test_batches_are_found_by_status_the_oldest_first(shelf: Shelf):
    batches = [batch_object(ASKED, 1000 + n, 60) for n in range(3)]
    for batch in batches:
        shelf.records.add(Kind.batch, "one", batch)
    shelf.records.change(batches[0]["id"], lambda now: {**now, "status": "completed"})
    assert shelf.records.labelled(Kind.batch, ("validating", "in_progress")) == [
        ("one", batch) for batch in batches[1:]
    ]


def test_a_folder_that_cannot_be_used_is_the_users_mistake(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"batches\.path=.*cannot be used"):
        Shelf(tmp_path / "file")
