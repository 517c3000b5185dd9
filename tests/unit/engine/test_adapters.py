from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.errors import UserError
from conf.schema.model import ModelSpec
from serve.engine.adapters import check_adapter_name, check_adapters, highest_rank
from serve.engine.errors import RequestRejected


def adapter(folder: Path, config: object, weights: str | None = "adapter_model.safetensors") -> str:
    folder.mkdir()
    if config is not None:
        (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if weights is not None:
        (folder / weights).touch()
    return str(folder)


def model(**adapters: str) -> ModelSpec:
    return ModelSpec(path="/m", adapters=adapters)


def test_good_adapters_pass_and_the_highest_rank_counts(tmp_path: Path) -> None:
    spec = model(
        a=adapter(tmp_path / "a", {"peft_type": "LORA", "r": 8}),
        b=adapter(tmp_path / "b", {"r": 4, "rank_pattern": {"q_proj": 24}}, "adapter_model.bin"),
    )
    check_adapters(spec)
    assert highest_rank(spec) == 24


def test_a_model_without_adapters_passes() -> None:
    check_adapters(model())


@pytest.mark.parametrize(
    "config, weights, complaint",
    [
        (None, "adapter_model.safetensors", "no adapter_config.json in it"),
        ("{", "adapter_model.safetensors", "adapter_config.json cannot be read"),
        ([], "adapter_model.safetensors", "must hold an object"),
        ({"peft_type": "IA3"}, "adapter_model.safetensors", "peft_type must be LORA, got IA3"),
        ({}, "adapter_model.safetensors", "rank r must be a whole number in 1..512, got None"),
        ({"r": 1024}, "adapter_model.safetensors", "got 1024"),
        ({"r": 8, "rank_pattern": {"x": 0}}, "adapter_model.safetensors", "got 0"),
        ({"r": 8}, None, "no weights in it (looked for adapter_model.safetensors"),
    ],
)
def test_a_bad_adapter_is_named_on_one_line(
    tmp_path: Path, config: object, weights: str | None, complaint: str
) -> None:
    folder = adapter(tmp_path / "bad", config, weights)
    with pytest.raises(UserError) as caught:
        check_adapters(model(good=adapter(tmp_path / "good", {"r": 8}), bad=folder))
    message = str(caught.value)
    assert message.startswith(f"model.adapters.bad={folder}: ")
    assert complaint in message
    assert "\n" not in message


def test_an_adapter_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.adapters\.x=.*nowhere: no such folder"):
        check_adapters(model(x=str(tmp_path / "nowhere")))


def test_an_unknown_name_is_rejected_with_those_that_exist() -> None:
    check_adapter_name("formal", {"formal": "/a"})
    with pytest.raises(RequestRejected) as caught:
        check_adapter_name("fromal", {"formal": "/a", "brief": "/b"})
    assert caught.value.error == "unknown_adapter"
    assert "'fromal' (brief, formal); did you mean 'formal'?" in caught.value.message
    with pytest.raises(RequestRejected, match="it has none"):
        check_adapter_name("x", {})


def test_of_many_names_the_message_lists_a_few() -> None:
    with pytest.raises(RequestRejected, match="a09 and 90 more"):
        check_adapter_name("zzz", [f"a{index:02}" for index in range(100)])
