"""What a job was asked, and what another asks otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ledger.folder import Folder
from pipelines.ledger.spec import JobSpec, read_spec
from pipelines.storage import locate

QUICK = settings(deadline=None, max_examples=100, database=None, derandomize=True)

VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.text(), max_size=2)
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(root=locate(str(tmp_path), "output.path"), suffix="parquet")


def spec(**decides: Any) -> JobSpec:
    return JobSpec(decides=decides, unit_rows=32, job={})


def test_a_folder_without_a_job_has_none(folder: Folder) -> None:
    assert read_spec(folder) is None


def test_a_job_comes_back_as_it_was_written(folder: Folder) -> None:
    job = JobSpec(decides={"data.prompt": "ü {{ q }}\n", "n": 1, "stop": []}, unit_rows=7, job={"a": {"b": None}})
    job.write(folder)
    assert read_spec(folder) == job


@QUICK
@given(decides=st.dictionaries(st.text(min_size=1), VALUES))
def test_a_job_that_was_written_and_read_asks_nothing_otherwise(
    tmp_path_factory: pytest.TempPathFactory, decides: dict[str, Any]
) -> None:
    folder = Folder(root=locate(str(tmp_path_factory.mktemp("job")), "output.path"), suffix="parquet")
    spec(**decides).write(folder)
    read = read_spec(folder)
    assert read is not None
    assert read.differences(spec(**decides)) == []
    assert spec(**decides).differences(read) == []


@pytest.mark.parametrize(
    "before, after, said",
    [
        ({"a": 1}, {"a": 1}, []),
        ({"sampling.max_tokens": 256}, {"sampling.max_tokens": 64}, ["sampling.max_tokens is 64, it was 256"]),
        ({"data.system": None}, {"data.system": "kind"}, ['data.system is "kind", it was null']),
        ({}, {"engine.vllm.seed": 1}, ["engine.vllm.seed is 1, it was null"]),
        ({"engine.vllm.seed": 1}, {}, ["engine.vllm.seed is null, it was 1"]),
        ({"a": 1, "b": 2}, {"b": 3, "c": 4, "a": 1}, ["b is 3, it was 2", "c is 4, it was null"]),
        ({"stop": []}, {"stop": ["x"]}, ['stop is ["x"], it was []']),
        ({"a": None}, {}, []),
    ],
)
def test_a_difference_is_named_with_both_values(before: dict[str, Any], after: dict[str, Any], said: list[str]) -> None:
    assert spec(**before).differences(spec(**after)) == said


def test_a_long_value_is_cut_to_one_line() -> None:
    (said,) = spec(prompt="x\n" * 900).differences(spec(prompt="short"))
    assert "\n" not in said
    assert len(said) < 120
    assert said.startswith('prompt is "short", it was "x')


def test_the_rows_of_a_unit_and_the_rest_of_the_job_may_differ() -> None:
    other = JobSpec(decides={}, unit_rows=99, job={"engine": {"num_replicas": 2}})
    assert spec().differences(other) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "5", "{}", '{"decides": {}}', '{"decides": {}, "unit_rows": "x", "job": {}}']
)
def test_a_file_that_is_no_job_raises_a_value_error(folder: Folder, text: str) -> None:
    folder.spec.write_bytes(text.encode())
    with pytest.raises(ValueError, match=r"."):
        read_spec(folder)


def test_the_file_is_json_that_a_person_can_read(folder: Folder) -> None:
    spec(prompt="ü").write(folder)
    text = folder.spec.read_bytes().decode()
    assert json.loads(text)["decides"] == {"prompt": "ü"}
    assert "ü" in text
    assert text.count("\n") > 3
