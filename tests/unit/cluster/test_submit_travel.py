from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.submit.travel import place, shipped
from conf import entry
from conf.errors import UserError
from conf.keys import keys_of

ELSEWHERE = False
HERE = True


def job(**data: Any) -> dict[str, Any]:
    return {"data": data, "model": {"path": "/shared/m", "adapters": {}}, "output": {"path": "s3://b/out"}}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text("{}\n")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "ask.jinja").write_text("{{ q }}")
    return tmp_path


def test_uris_and_absolute_paths_are_passed_on_as_they_are(here: Path):
    placed = place(job(input=["s3://b/in", "/shared/in.jsonl"]), [], here, ELSEWHERE)
    assert placed.job == job(input=["s3://b/in", "/shared/in.jsonl"])
    assert placed.seen == {"data.input": "/shared/in.jsonl", "model.path": "/shared/m"}


def test_what_travels_is_found_below_the_job_s_own_folder(here: Path):
    named = [here / "in.jsonl", here / "prompts"]
    placed = place(job(input="in.jsonl", prompt_file=str(here / "prompts/ask.jinja")), named, here, ELSEWHERE)
    assert placed.job["data"] == {"input": "_files/in.jsonl", "prompt_file": "_files/prompts/ask.jinja"}
    assert "data.input" not in placed.seen


def test_what_travels_from_elsewhere_keeps_its_whole_path(here: Path):
    inner = here / "inner"
    placed = place(job(input="../in.jsonl"), [here / "in.jsonl"], inner, ELSEWHERE)
    assert placed.job["data"]["input"] == f"_files/@root{here}/in.jsonl"


def test_relative_paths_become_absolute_where_nodes_see_this_machine(here: Path):
    whole = job(input="./in.jsonl", prompt="{{ q }}")
    whole["model"] = {"path": "prompts", "adapters": {"a": "prompts"}}
    whole["output"] = {"path": "out"}
    whole["deployment"] = {"models": {"x": {"model": {"path": "prompts"}}}}
    placed = place(whole, [], here, HERE)
    assert placed.job["data"] == {"input": f"{here}/in.jsonl", "prompt": "{{ q }}"}
    assert placed.job["model"] == {"path": f"{here}/prompts", "adapters": {"a": f"{here}/prompts"}}
    assert placed.job["output"] == {"path": f"{here}/out"}
    assert placed.seen["deployment.models.x.model.path"] == f"{here}/prompts"
    assert whole["output"] == {"path": "out"}


@pytest.mark.parametrize("value", ["no.jsonl", "/no/such/file"])
def test_a_path_that_is_not_there_is_found_before_anything_is_sent(here: Path, value: str):
    whole = job(input=value)
    whole["model"] = {"path": str(here)}
    with pytest.raises(UserError, match=f"data.input={value}: no such file or folder"):
        place(whole, [], here, HERE)


def test_a_pattern_is_left_to_the_nodes(here: Path):
    whole = job(input="*.parquet")
    whole["model"] = {"path": str(here)}
    placed = place(whole, [], here, HERE)
    assert placed.job["data"]["input"] == f"{here}/*.parquet"
    assert placed.seen == {"model.path": str(here)}


def test_a_relative_path_that_nodes_cannot_see_is_the_user_s_mistake(here: Path):
    with pytest.raises(UserError, match=r"data.input=in.jsonl is on this machine.*name it in submit.files"):
        place(job(input="in.jsonl"), [], here, ELSEWHERE)
    with pytest.raises(UserError, match=r"output.path=out would be a folder of one of the cluster's nodes"):
        place({"output": {"path": "out"}}, [], here, ELSEWHERE)


def test_text_is_no_path(here: Path):
    whole = {"sampling": {"json_schema": ' {"type": "object"}'}, "output": {"json_file": "-"}, "parent": ""}
    assert place(whole, [], here, ELSEWHERE).job == whole


def test_a_model_called_by_its_name_is_found(here: Path):
    placed = place({"parent": "demo"}, [], here, HERE)
    assert placed.job == {"parent": str(entry.ROOT / "demo" / "model")}


def test_what_the_demo_reads_comes_with_the_code():
    demo = entry.ROOT / "demo" / "model"
    assert shipped({"model": {"path": str(demo)}, "data": {"input": "/in"}}) == [demo]


@pytest.mark.parametrize("verb", ["batch", "serve", "optimize", "evaluate"])
def test_every_key_that_is_documented_as_a_file_or_a_folder_is_known(verb: str):
    """A new key with a path in it must be decided on, or it would silently name a file of another machine."""
    from fnmatch import fnmatchcase

    from cluster.submit.travel import READ, WRITTEN

    for key in keys_of(entry.SCHEMAS[verb]):
        if key.is_text and key.name.endswith((".path", "_file", ".tokenizer", ".chat_template", ".store", ".logs")):
            assert any(fnmatchcase(key.name, pattern) for pattern in (*READ, *WRITTEN)), key.name
