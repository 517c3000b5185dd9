"""What in an output folder is ours, and where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from pipelines.ledger.folder import Folder
from pipelines.storage import Location, locate

UNIT = "0123456789ab"
OURS = [
    f"part-{UNIT}.parquet",
    f"part-{UNIT}.jsonl",
    f"part-{UNIT}.parquet.0a1b2c3d.tmp",
    f"failed/part-{UNIT}.parquet",
    f"failed/part-{UNIT}.jsonl.0a1b2c3d.tmp",
    "_manta/job.json",
    "_manta/report.html",
    "_manta/report.html.0a1b2c3d.tmp",
    "_manta/spec.json",
    "_manta/spec.json.0a1b2c3d.tmp",
    f"_manta/done/{UNIT}.json",
    f"_manta/done/{UNIT}.json.0a1b2c3d.tmp",
    f"_manta/log/{UNIT}.run.replica.jsonl",
    "_manta/logs/driver.log",
    "_manta/logs/deep/worker.out",
]
NOT_OURS = [
    "notes.txt",
    "part-list.txt",
    "part-x.parquet",
    f"part-{UNIT}.csv",
    f"part-{UNIT}0.parquet",
    f"part-{UNIT.upper()}.parquet",
    f"part-{UNIT}.parquet.bak",
    f"my-part-{UNIT}.parquet",
    f"sub/part-{UNIT}.parquet",
    f"failed/deep/part-{UNIT}.parquet",
    "failed/why.md",
    "_manta/notes.txt",
    "_manta/job.json.bak",
    "sub/_manta/job.json",
]


def fill(place: Path, names: list[str]) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x" * len(name))


@pytest.fixture(params=["local", "other"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder(root=locate(str(tmp_path / "out"), "output.path"), suffix="parquet")
    tree = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return Folder(root=Location(filesystem=tree, path="out"), suffix="parquet")


def test_a_folder_that_is_not_there_holds_nothing(folder: Folder) -> None:
    assert folder.written() == {}


def test_what_is_ours_is_listed_with_its_size_and_nothing_else(folder: Folder, tmp_path: Path) -> None:
    fill(tmp_path / "out", [*OURS, *NOT_OURS])
    assert folder.written() == {name: len(name) for name in OURS}


def test_leases_are_not_listed_for_they_are_in_use(folder: Folder, tmp_path: Path) -> None:
    fill(tmp_path / "out", ["_manta/leases/0a1b2c3d.json", "_manta/leases/0a1b2c3d.beat"])
    assert folder.written() == {}


def test_every_place_that_a_job_writes_is_listed_as_it_names_it(folder: Folder) -> None:
    places = [folder.answers(UNIT), folder.failed(UNIT), folder.mark(UNIT), folder.spec, folder.record]
    places += [folder.log.join("x"), folder.logs.join("x")]
    for place in places:
        place.write_bytes(b"12345")
    assert folder.written() == {folder.name(place): 5 for place in places}


def test_a_users_own_output_jsonl_is_not_taken_for_ours(folder: Folder, tmp_path: Path) -> None:
    """Else output.overwrite=true deletes it."""
    fill(tmp_path / "out", ["output.jsonl", "errors.jsonl"])
    assert folder.written() == {}


def test_a_folder_in_whose_path_is_a_folder_up_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    folder = Folder(root=locate(f"{tmp_path}/sub/../out", "output.path"), suffix="jsonl")
    folder.spec.write_bytes(b"{}")
    assert folder.written() == {"_manta/spec.json": 2}
