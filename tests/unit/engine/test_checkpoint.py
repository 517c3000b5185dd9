"""What a checkpoint's folder says of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import UserError
from conf.schema.model import ModelSpec
from serve.engine.checkpoint import check_partition, context_tokens, plain_config, read_model_config


def test_the_context_is_the_models_unless_less_is_asked_for(demo_model: Path) -> None:
    config = read_model_config(ModelSpec(path=str(demo_model)))
    assert context_tokens(config, None) == 4096
    assert context_tokens(config, 100) == 100
    with pytest.raises(UserError, match="4096, got 5000"):
        context_tokens(config, 5000)


def test_partitions_must_divide_the_model(demo_model: Path) -> None:
    config = read_model_config(ModelSpec(path=str(demo_model)))
    check_partition(config, 2, 2)
    with pytest.raises(UserError, match=r"engine\.tensor_parallel_size must divide num_attention_heads=4, got 3"):
        check_partition(config, 3, 1)
    with pytest.raises(UserError, match=r"engine\.pipeline_parallel_size must be <= num_hidden_layers=4, got 5"):
        check_partition(config, 1, 5)


@pytest.mark.parametrize("text", [None, "{", "[]", "\xff"])
def test_a_config_that_cannot_be_read_says_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert plain_config(str(tmp_path)) == {}
