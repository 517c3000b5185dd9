from __future__ import annotations

import pytest

from conf.errors import UserError
from conf.schema.router import RouterPolicy, RouterSpec


@pytest.mark.parametrize(
    "key,value",
    [
        ("block_tokens", 0),
        ("bytes_per_token", 0.0),
        ("bytes_per_token", float("nan")),
        ("prefill_weight", -1.0),
        ("queue_weight", -1.0),
        ("queue_weight", float("inf")),
        ("decode_weight", -0.5),
        ("min_match_fraction", 1.5),
        ("imbalance_bound", 0.9),
        ("imbalance_slack_tokens", -1),
        ("max_blocks", -1),
        ("max_sessions", -1),
        ("stale_after_s", 0.0),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key_and_rule(key: str, value: float):
    with pytest.raises(UserError, match=rf"^router\.{key} must be .*, got "):
        RouterSpec(**{key: value})


def test_a_block_of_text_is_as_long_as_its_tokens():
    assert RouterSpec(block_tokens=100, bytes_per_token=3.5).block_bytes == 350
    assert RouterSpec(block_tokens=1, bytes_per_token=0.1).block_bytes == 1


def test_a_fallback_is_a_rule_for_prompts_that_nobody_holds():
    with pytest.raises(UserError, match=r"^router\.fallback must be power_of_two or least_tokens, got prefix"):
        RouterSpec(fallback=RouterPolicy.prefix)
