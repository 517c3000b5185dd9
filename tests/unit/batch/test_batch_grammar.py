"""The JSON schema of answers: text or a file, one text in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import UserError
from conf.schema.sampling import SamplingSpec
from pipelines.batch import grammar
from pipelines.batch.grammar import check_grammar, read_json_schema

pytestmark = pytest.mark.timeout(120)  # some import vLLM
SCHEMA = {"type": "object", "properties": {"ü": {"type": "string"}}, "additionalProperties": False}


def read(value: str | None) -> str | None:
    return read_json_schema(SamplingSpec(json_schema=value)).json_schema


def test_no_schema_stays_none() -> None:
    assert read(None) is None


def test_text_and_file_make_the_same_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA, indent=4, ensure_ascii=False))
    from_text, from_file = read(json.dumps(SCHEMA)), read(str(path))
    assert from_text == from_file
    assert json.loads(from_text or "") == SCHEMA


def test_blanks_make_no_other_schema() -> None:
    assert read(" \n" + json.dumps(SCHEMA, indent=1)) == read(json.dumps(SCHEMA))


def test_fields_stay_in_their_order_for_that_is_how_they_are_written() -> None:
    """A model that must write its answer before its reasoning answers worse."""
    properties = {name: {"type": "string"} for name in ("reasoning", "answer")}
    got = json.loads(read(json.dumps({"type": "object", "properties": properties})) or "")
    assert list(got["properties"]) == ["reasoning", "answer"]


def test_a_schema_that_was_read_is_read_as_itself() -> None:
    once = read(json.dumps(SCHEMA))
    assert read(once) == once


def test_the_other_parameters_stay() -> None:
    sampling = SamplingSpec(json_schema="{}", max_tokens=7, stop=["x"])
    got = read_json_schema(sampling)
    assert (got.max_tokens, got.stop) == (7, ["x"])
    assert sampling.json_schema == "{}"


@pytest.mark.parametrize(
    "value, said",
    [
        ("gone.json", "neither JSON nor a file"),
        ("{", "no JSON"),
        ('{"a": 1} trailing', "no JSON"),
        ("true", "neither JSON nor a file"),
        ("", "neither JSON nor a file"),
    ],
)
def test_what_is_no_schema_is_refused(value: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(value)
    assert str(caught.value).startswith("sampling.json_schema=")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data, said", [(b"[1]", "JSON object"), (b"\xff", "can be read"), (b"", "no JSON")])
def test_a_file_that_holds_no_schema_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        read(str(path))


def test_a_folder_is_no_schema(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can be read"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    "sampling, said",
    [
        ({"regex": "[a-"}, "sampling.regex=[a-: no grammar can be made of it: Regex parsing error"),
        ({"regex": "a\x00"}, "NUL"),
        ({"json_schema": '{"type": "strng"}'}, 'Unsupported type "strng"'),
        ({"json_schema": '{"$ref": "http://host/x"}'}, "only #/... can be resolved"),
        ({"json_schema": '{"type": "array", "uniqueItems": true}'}, "does not keep uniqueItems as it is used here"),
    ],
)
def test_a_grammar_that_would_fail_every_row_is_refused(sampling: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_grammar(SamplingSpec(**sampling), {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


DATED = '{"type": "object", "properties": {"day": {"type": "string", "format": "date"}}}'


@pytest.mark.parametrize(
    "sampling",
    [{}, {"regex": "[a-c]{1,3}"}, {"json_schema": "{}"}, {"json_schema": DATED}, {"choice": ["a"]}],
)
def test_a_grammar_that_compiles_is_none_of_the_users_mistakes(sampling: dict[str, Any]) -> None:
    check_grammar(SamplingSpec(**sampling), {"structured_outputs_config": {"backend": "xgrammar"}})


@pytest.mark.parametrize("own", [{"backend": "guidance"}, {"disable_any_whitespace": False}, {}, "guidance"])
def test_of_another_compiler_nothing_is_known(own: Any) -> None:
    """vLLM's own default is auto, which tries a second compiler for what the first one refuses."""
    check_grammar(SamplingSpec(regex="(?i)abc"), {"structured_outputs_config": own})


def test_what_takes_too_long_to_compile_is_left_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "COMPILE_S", 0.01)
    check_grammar(SamplingSpec(regex="(ab"), {})
