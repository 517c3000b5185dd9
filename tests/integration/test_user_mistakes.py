"""Each mistake of the user's is one line and exit code 2, and neither Ray nor an engine starts for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.cli import main


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "why"}\n{"question": "how"}\n')
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    import ray

    code = main(["batch", *words])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert not ray.is_initialized()
    return captured.err


def words(tmp_path: Path, table: Path, **changes: str) -> list[str]:
    chosen = {
        "model": "demo",
        "data.input": str(table),
        "data.prompt": "{{ question }}",
        "output.path": str(tmp_path / "out"),
        **changes,
    }
    return [f"{key}={value}" for key, value in chosen.items()]


def test_a_missing_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    line = refused(capsys, *words(tmp_path, tmp_path / "im.jsonl"))
    assert "im.jsonl: no such file or folder; did you mean 'in.jsonl'?" in line


def test_a_uri_of_no_known_filesystem(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    line = refused(capsys, *words(tmp_path, table, **{"data.input": "ftp://host/in.jsonl"}))
    assert "data.input=ftp://host/in.jsonl" in line


def test_an_empty_input(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    table.write_text("\n\n")
    assert "it holds no rows" in refused(capsys, *words(tmp_path, table))


def test_a_grammar_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    line = refused(capsys, *words(tmp_path, table, **{"sampling.regex": "'(ab'"}))
    assert "sampling.regex=(ab: no grammar can be made of it" in line


def test_messages_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    asked = words(tmp_path, table, **{"data.prompt": "null", "data.messages": "question"})
    line = refused(capsys, *asked)
    assert "a column of texts goes with data.prompt='{{ question }}'" in line


def test_a_template_with_a_column_that_the_table_lacks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path
) -> None:
    line = refused(capsys, *words(tmp_path, table, **{"data.prompt": "{{ questoin }}"}))
    assert "the column 'questoin', which the table lacks; did you mean 'question'?" in line


def test_an_unknown_key(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    line = refused(capsys, *words(tmp_path, table), "sampling.max_token=5")
    assert "unknown key 'sampling.max_token'; did you mean 'sampling.max_tokens'?" in line


def test_a_wrong_model_path(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    line = refused(capsys, *words(tmp_path, table, **{"model": "hf", "model.path": str(tmp_path / "nope")}))
    assert "no such folder" in line


def test_an_output_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path
) -> None:
    (tmp_path / "file").touch()
    line = refused(capsys, *words(tmp_path, table, **{"output.path": str(tmp_path / "file" / "out")}))
    assert "it is a file, or lies below one; a folder is wanted" in line


def test_an_output_folder_with_a_former_job(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-0123456789ab.parquet").touch()
    assert "output.overwrite=true" in refused(capsys, *words(tmp_path, table))
    assert (tmp_path / "out" / "part-0123456789ab.parquet").exists()


def test_an_engine_argument_that_vllm_does_not_have(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path
) -> None:
    line = refused(capsys, *words(tmp_path, table), "engine.vllm.max_num_batched_token=5")
    assert "did you mean 'max_num_batched_tokens'?" in line


def test_a_cluster_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    line = refused(capsys, *words(tmp_path, table), "cluster.address=127.0.0.1:1")
    assert "cluster.address=127.0.0.1:1: no cluster answers" in line
    assert not list((tmp_path / "out").glob("part-*"))


def test_a_broken_template(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    line = refused(capsys, *words(tmp_path, table, **{"data.prompt": "{{ question"}))
    assert "data.prompt: line 1 of the template" in line


def test_a_table_that_has_the_output_column_already(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path
) -> None:
    table.write_text(json.dumps({"question": "why", "output": "because"}))
    assert "set output.prefix" in refused(capsys, *words(tmp_path, table))


def test_a_service_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path) -> None:
    where = {"engine": "service", "engine.service.url": "http://127.0.0.1:9"}
    line = refused(capsys, *words(tmp_path, table, **where))
    assert "engine.service.url=http://127.0.0.1:9: nothing answers there" in line


@pytest.mark.parametrize(
    "changes, says",
    [
        ({}, "needs engine.service.url"),
        ({"engine.sizing": "planned"}, "engine.sizing=planned"),
        ({"engine.vllm.seed": "1"}, "engine.vllm.seed"),
        ({"task": "score"}, "task=score"),
    ],
)
def test_what_a_service_has_no_use_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, table: Path, changes: dict[str, str], says: str
) -> None:
    url = {"engine.service.url": "http://127.0.0.1:9"} if changes else {}
    assert says in refused(capsys, *words(tmp_path, table, engine="service", **url, **changes))
