"""How many parameters a decoder has, counted from its config.json.

Source: transformers' modeling files of the model types in `STYLES` (5.16-5.19); a test counts each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Where a model type differs from Llama."""

    has_qkv_bias: bool = False
    """Query, key and value have a bias whatever the config says."""
    has_all_bias: bool = False
    """So have the output projection, the MLP and the output embedding."""
    head_norms: str = ""
    """``head``: query and key are normed head by head; ``whole``: each as a whole."""
    norms: int = 2
    """Norms of a layer."""
    is_layer_norm: bool = False
    """Norms have a bias."""
    is_gated: bool = True
    """The MLP has a gate: three matrices, not two."""
    head_dim: int | None = None
    kv_heads: int | None = None
    is_tied: bool = False
    """What holds where the config does not say it."""


STYLES: dict[str, Style] = {
    "llama": Style(),
    "mistral": Style(kv_heads=8),
    "ministral": Style(),
    "mixtral": Style(kv_heads=8),
    "granite": Style(),
    "phi3": Style(),
    "phi": Style(has_qkv_bias=True, has_all_bias=True, norms=1, is_layer_norm=True, is_gated=False),
    "qwen2": Style(has_qkv_bias=True),
    "qwen2_moe": Style(has_qkv_bias=True),
    "qwen3": Style(head_norms="head", head_dim=128),
    "qwen3_moe": Style(head_norms="head"),
    "olmo2": Style(head_norms="whole"),
    "gemma": Style(head_dim=256, is_tied=True),
    "gemma2": Style(head_dim=256, is_tied=True, norms=4),
    "gemma3_text": Style(head_dim=256, is_tied=True, norms=4, head_norms="head"),
}
"""Model types that are counted exactly; any other is counted as a Llama."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """A decoder's parameters."""

    total: int
    active: int
    """Those that a token meets, the embeddings whole."""
    linear: int
    """Those in matrices of layers: what quantization methods quantize."""
    embedding: int
    """The input embedding."""
    is_tied: bool
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the language model's part of a config; models with other modalities nest it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def is_known(text: Mapping[str, Any]) -> bool:
    """Returns whether the model type is counted exactly."""
    return text.get("model_type") in STYLES


def count_parts(text: Mapping[str, Any]) -> Parts:
    """Counts a decoder's parameters.

    Args:
        text: config.json, its `text_config` where it has one.
    """
    style = STYLES.get(str(text.get("model_type")), Style())
    hidden, layers = _int(text, "hidden_size", "n_embd", "d_model"), _int(text, "num_hidden_layers", "n_layer")
    heads, vocab = _int(text, "num_attention_heads", "n_head"), int(text.get("vocab_size") or 0)
    kv_heads = int(text.get("num_key_value_heads") or style.kv_heads or heads)
    kv_heads = min(kv_heads, heads)
    head_dim = int(text.get("head_dim") or style.head_dim or hidden // heads)
    inner = int(text.get("intermediate_size") or text.get("n_inner") or 4 * hidden)
    tied = text.get("tie_word_embeddings")
    is_tied = style.is_tied if tied is None else bool(tied)

    q, kv = heads * head_dim, kv_heads * head_dim
    attention = hidden * (q + 2 * kv) + q * hidden
    small = 0  # biases and norms of a layer
    if style.has_qkv_bias and text.get("qkv_bias", True):
        small += q + 2 * kv
    elif text.get("attention_bias"):
        small += q + 2 * kv + hidden
    if style.head_norms:
        small += 2 * head_dim if style.head_norms == "head" else q + kv
    small += style.norms * hidden * (2 if style.is_layer_norm else 1)
    matrices = 3 if style.is_gated else 2
    mlp = matrices * hidden * inner
    mlp_bias = 0
    if style.has_all_bias:
        small += hidden
        mlp_bias = inner + hidden
    elif text.get("mlp_bias"):
        mlp_bias = 2 * inner + hidden

    sparse = _sparse_layers(text, layers)
    expert, experts, chosen, shared = _experts(text, hidden, inner)
    dense_layers = layers - sparse
    linear = layers * attention + dense_layers * mlp + sparse * (expert * experts + shared)
    router = sparse * (hidden * experts + (hidden if shared else 0))
    embedding = vocab * hidden
    head = 0 if is_tied else embedding + (vocab if style.has_all_bias else 0)
    rest = layers * small + dense_layers * mlp_bias + router + hidden * (2 if style.is_layer_norm else 1)
    total = linear + rest + embedding + head
    return Parts(
        total=total,
        active=total - sparse * expert * (experts - chosen),
        linear=linear,
        embedding=embedding,
        is_tied=is_tied,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=hidden,
        vocab=vocab,
    )


def _int(text: Mapping[str, Any], *names: str) -> int:
    """The first of the names that the config has; 1 where it has none, so that what follows stays a number."""
    return next((int(text[name]) for name in names if text.get(name)), 1)


def _experts(text: Mapping[str, Any], hidden: int, inner: int) -> tuple[int, int, int, int]:
    """Returns the parameters of an expert, how many there are, how many a token meets, and those of the shared one."""
    experts = next((int(text[n]) for n in ("num_local_experts", "num_experts", "n_routed_experts") if text.get(n)), 0)
    chosen = int(text.get("num_experts_per_tok") or 0)
    size = int(text.get("moe_intermediate_size") or inner)
    shared = int(text.get("shared_expert_intermediate_size") or 0) or size * int(text.get("n_shared_experts") or 0)
    return 3 * hidden * size, experts, min(chosen, experts), 3 * hidden * shared if experts else 0


def _sparse_layers(text: Mapping[str, Any], layers: int) -> int:
    """Returns how many layers have experts."""
    if not any(text.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        return 0
    step = int(text.get("decoder_sparse_step") or 1)
    dense = set(text.get("mlp_only_layers") or ()) | set(range(int(text.get("first_k_dense_replace") or 0)))
    return sum(index not in dense and (index + 1) % step == 0 for index in range(layers))
