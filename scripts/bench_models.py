"""Models for benchmarks: a folder made of a config, with weights that vLLM draws (``load_format=dummy``).

Their tokenizer has a word for each token id, its decimal number, and their chat template adds nothing. So the text of a
prompt says its tokens exactly, also to tools that take nothing but chats, and every token of an answer is a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.schema.quantize import QuantizeSpec, Scheme
from pipelines.optimize.quantize.scheme import choose_group, quantization_config

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {"demo": ROOT / "demo" / "model"}
"""Real checkpoints, for the tickets."""

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "transformers_version": "5.17.0",
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": LLAMA | dict(zip(SIZES, (128, 2, 2, 1, 256), strict=True), vocab_size=4096),
    "qwen_500m": LLAMA
    | {"attention_bias": True, "tie_word_embeddings": True}
    | dict(zip(SIZES, (896, 24, 14, 2, 4864), strict=True), vocab_size=151936),
    "llama_1b": LLAMA | dict(zip(SIZES, (2048, 22, 32, 4, 5632), strict=True), vocab_size=32000),
    "llama_8b": LLAMA | dict(zip(SIZES, (4096, 32, 32, 8, 14336), strict=True), vocab_size=128256),
    "experts_7b": LLAMA
    | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None}
    | dict(zip(SIZES, (2048, 16, 16, 16, 1024), strict=True), vocab_size=50304)
    | {"num_local_experts": 64, "num_experts_per_tok": 8},
}
"""Sizes of Qwen2.5-0.5B, TinyLlama-1.1B, Llama-3-8B and OLMoE-7B, of which a token meets 1.3 B; `tiny` is for trying
the benchmark itself. All are Llamas and a Mixtral: of a `qwen2` transformers 5 takes its own tokenizer, with a token
for each digit, whatever the folder says."""


def model_config(name: str) -> dict[str, Any]:
    """Returns a model's config.json.

    Args:
        name: a key of `CONFIGS`, with other sizes after it where wanted, ``llama_1b,num_hidden_layers=4``, and a scheme
            of `Scheme` for fewer bits, ``llama_8b+fp8``.

    Raises:
        ValueError: for a name or a size that is none.
    """
    name, _, scheme = name.partition("+")
    base, *changes = name.split(",")
    if base not in CONFIGS:
        raise ValueError(f"no model '{base}' (there are {', '.join([*SHIPPED, *CONFIGS])})")
    config = dict(CONFIGS[base])
    for change in changes:
        key, _, value = change.partition("=")
        if key not in (*SIZES, "vocab_size", "max_position_embeddings", "num_local_experts") or not value.isdigit():
            raise ValueError(f"model '{name}': '{change}' is no size (there are {', '.join(SIZES)}, vocab_size)")
        config[key] = int(value)
    config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    return config | ({"quantization_config": _quantization(scheme, config)} if scheme else {})


def _quantization(scheme: str, config: dict[str, Any]) -> dict[str, Any]:
    if scheme not in Scheme.__members__:
        raise ValueError(f"no scheme '{scheme}' (there are {', '.join(Scheme.__members__)})")
    spec = QuantizeSpec(scheme=Scheme[scheme])
    widths = {key: config[key] for key in ("hidden_size", "intermediate_size")}
    return quantization_config(spec, choose_group(spec, widths))


def num_parameters(config: dict[str, Any]) -> int:
    """Returns the weights of a config, embeddings included."""
    hidden, heads, kv_heads = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    attention = 2 * hidden * config["head_dim"] * (heads + kv_heads)
    if config["attention_bias"]:
        attention += config["head_dim"] * (heads + 2 * kv_heads) + hidden
    experts = config.get("num_local_experts", 0)
    router = experts * hidden
    layer = attention + router + 3 * hidden * config["intermediate_size"] * max(experts, 1) + 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return config["num_hidden_layers"] * layer + embeddings + hidden


def make_model(config: dict[str, Any], folder: Path) -> None:
    """Writes config and tokenizer of a model without weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {str(token): token for token in range(config["vocab_size"])},
            "unk_token": "0",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
