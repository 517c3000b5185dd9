"""A decoder's shape through a recipe, by its config.json alone: what each step will be given."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from conf.schema.prune import PruneMethod
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.decoder import SHAPES
from pipelines.optimize.prune.count import count_kept, count_width
from pipelines.optimize.prune.kept import head_dim

_COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether the shape can be followed: a model with Llama's parts that says how many of each it has."""
    return config.get("model_type") in SHAPES and all(isinstance(config.get(key), int) for key in _COUNTS)


def layer_widths(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Returns inputs and outputs of the linear layers of a decoder layer, by name."""
    one = SimpleNamespace(**config)
    hidden, ffn = one.hidden_size, one.intermediate_size
    queries, keys = one.num_attention_heads * head_dim(one), one.num_key_value_heads * head_dim(one)
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, ffn),
        "up_proj": (hidden, ffn),
        "down_proj": (ffn, hidden),
    }


def shape_after(step: StepSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config.json of what a step makes, as far as its shape goes.

    Args:
        step: what it does.
        config: of what it is given; see `is_known`.

    Raises:
        StepFailed: when the shares cannot be met.
    """
    if step.kind is not StepKind.prune:
        return dict(config)
    spec, one = step.prune, SimpleNamespace(**config)
    if spec.method is PruneMethod.depth:
        return {**config, "num_hidden_layers": count_kept("prune.layers", spec.layers, one.num_hidden_layers)}
    if spec.method is not PruneMethod.width:
        return dict(config)
    heads, ffn, hidden = count_width(spec, one)
    return {
        **config,
        "head_dim": head_dim(one),
        "num_key_value_heads": heads,
        "num_attention_heads": heads * one.num_attention_heads // one.num_key_value_heads,
        "intermediate_size": ffn,
        "hidden_size": hidden,
    }
