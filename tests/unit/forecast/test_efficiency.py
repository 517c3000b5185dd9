from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.forecast.efficiency import KEPT, UNKNOWN_SPREAD, Efficiency, learn, look_up, table_path

KEY = "h200/8b/bf16"


def record(roofline_s: float = 80.0, inference_s: float = 100.0, **changes: Any) -> dict[str, Any]:
    return {
        "predicted": {"roofline_s": roofline_s, "key": KEY},
        "seconds": {"inference": inference_s, "plan": 1.0, "cluster": 2.0, "engines": 3.0},
        "interrupted": False,
        "engine_restarts": 0,
        **changes,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "efficiency.json"


def test_a_job_teaches_the_next(path: Path):
    assert look_up(KEY, path) == Efficiency()
    assert learn(record(), path)
    known = look_up(KEY, path)
    assert (known.ratio, known.jobs, known.start_s) == (0.8, 1, 6.0)
    assert known.spread < UNKNOWN_SPREAD
    assert look_up("h100/8b/bf16", path).jobs == 0


def test_the_spread_narrows_with_jobs_that_agree_and_not_with_others(path: Path):
    for _ in range(5):
        learn(record(), path)
    agreed = look_up(KEY, path).spread
    for roofline_s in (40.0, 160.0):
        learn(record(roofline_s), path)
    assert agreed < look_up(KEY, path).spread


@pytest.mark.parametrize(
    "changes",
    [
        {"interrupted": True},
        {"engine_restarts": 1},
        {"predicted": None},
        {"inference_s": 29.0},
        {"roofline_s": 0.0},
    ],
)
def test_some_jobs_teach_nothing(path: Path, changes: dict[str, Any]):
    assert not learn(record(**changes), path)
    assert not path.exists()


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"h200/8b/bf16": 1}', '{"h200/8b/bf16": {"ratios": ["x", null, -1]}}']
)
def test_a_broken_table_knows_nothing_and_is_mended(path: Path, content: str):
    path.parent.mkdir()
    path.write_text(content)
    assert look_up(KEY, path) == Efficiency()
    assert learn(record(), path)
    assert look_up(KEY, path).jobs == 1


def test_a_record_that_is_no_record_is_no_error(path: Path):
    assert not learn({}, path)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert not learn(record(), tmp_path / "file" / "efficiency.json")


def test_only_the_last_jobs_are_remembered_and_no_temporary_file_stays(path: Path):
    for _ in range(KEPT + 3):
        learn(record(), path)
    assert len(json.loads(path.read_text())[KEY]["ratios"]) == KEPT
    assert [file.name for file in path.parent.iterdir()] == ["efficiency.json"]


def test_where_the_table_lies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MANTA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert table_path() == Path("/x/manta/efficiency.json")
    monkeypatch.setenv("MANTA_CACHE", "/m")
    assert table_path() == Path("/m/efficiency.json")
