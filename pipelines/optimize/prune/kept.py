"""What of a decoder's shape is kept, and the smaller decoder that it leaves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_HIDDEN_IN = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
_HIDDEN_OUT = ("o_proj.weight", "down_proj.weight")
_HIDDEN_BIAS = ("o_proj.bias", "down_proj.bias")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Indices in ascending order of what stays; null keeps all."""

    layers: list[int]
    heads: dict[int, list[int]] | None = None
    """Of each layer kept, its KV heads; as many in each."""
    ffn: dict[int, list[int]] | None = None
    """Of each layer kept, its feed-forward channels; as many in each."""
    hidden: list[int] | None = None
    """Channels of the hidden state: the same in the whole model."""


def smaller_config(config: Any, kept: Kept) -> Any:
    """Returns a transformers configuration of what is kept; the given one stays as it is."""
    smaller = copy.deepcopy(config)
    smaller.head_dim = head_dim(config)
    smaller.num_hidden_layers = len(kept.layers)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        smaller.layer_types = [kinds[layer] for layer in kept.layers]
    if kept.heads is not None:
        smaller.num_key_value_heads = len(kept.heads[kept.layers[0]])
        smaller.num_attention_heads = smaller.num_key_value_heads * group_size(config)
    if kept.ffn is not None:
        smaller.intermediate_size = len(kept.ffn[kept.layers[0]])
    if kept.hidden is not None:
        smaller.hidden_size = len(kept.hidden)
    return smaller


def head_dim(config: Any) -> int:
    """Returns the width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def group_size(config: Any) -> int:
    """Returns the number of query heads that read a KV head."""
    return config.num_attention_heads // config.num_key_value_heads


def slice_weights(weights: dict[str, torch.Tensor], config: Any, kept: Kept) -> dict[str, torch.Tensor]:
    """Returns the weights of the smaller decoder, under its own names, in memory of their own.

    Args:
        weights: Of a decoder with Llama's names.
        config: Its configuration.
        kept: What stays.
    """
    place = {layer: at for at, layer in enumerate(kept.layers)}
    smaller = {}
    for name, tensor in weights.items():
        left, mark, rest = name.partition(".layers.")
        if not mark:
            smaller[name] = _slice_outside(tensor, kept).clone()
            continue
        number, _, part = rest.partition(".")
        if int(number) in place:
            smaller[f"{left}.layers.{place[int(number)]}.{part}"] = _slice_layer(
                part, tensor, int(number), config, kept
            ).clone()
    return smaller


def _slice_outside(tensor: torch.Tensor, kept: Kept) -> torch.Tensor:
    """Embedding and head are [vocabulary, hidden], the last norm is [hidden]."""
    return tensor if kept.hidden is None else tensor[..., kept.hidden]


def _slice_layer(part: str, tensor: torch.Tensor, layer: int, config: Any, kept: Kept) -> torch.Tensor:
    if kept.hidden is not None:
        if part.endswith(_HIDDEN_IN) or part.endswith("layernorm.weight"):
            tensor = tensor[..., kept.hidden]
        elif part.endswith(_HIDDEN_OUT + _HIDDEN_BIAS):
            tensor = tensor[kept.hidden]
    if kept.ffn is not None and ".mlp." in f".{part}":
        if part.endswith("down_proj.weight"):
            tensor = tensor[:, kept.ffn[layer]]
        elif not part.endswith("down_proj.bias"):
            tensor = tensor[kept.ffn[layer]]
    if kept.heads is not None:
        width, heads = head_dim(config), kept.heads[layer]
        queries = [head * group_size(config) + at for head in heads for at in range(group_size(config))]
        if "q_proj" in part:
            tensor = tensor[_rows(queries, width)]
        elif "k_proj" in part or "v_proj" in part:
            tensor = tensor[_rows(heads, width)]
        elif part.endswith("o_proj.weight"):
            tensor = tensor[:, _rows(queries, width)]
    return tensor


def _rows(heads: list[int], width: int) -> list[int]:
    return [head * width + at for head in heads for at in range(width)]


def build_smaller(model: Any, kept: Kept) -> Any:
    """Returns the smaller decoder, for evaluation; the given one stays as it is."""
    import transformers

    config = smaller_config(model.config, kept)
    smaller = transformers.AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation="sdpa")
    # Strict: a part that the slices know nothing of is an error, not a fresh random weight.
    smaller.load_state_dict(slice_weights(model.state_dict(), model.config, kept), strict=True)
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.eval()
