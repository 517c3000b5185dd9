from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve.engine.model_size import measure_model, plain_parameters, read_headers

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama without kv heads": ("llama", {"num_key_value_heads": None}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": ("llama", {"tie_word_embeddings": True, "head_dim": 32}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16}),
    "gemma3": ("gemma3_text", {"head_dim": 16}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "granite": ("granite", {}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2 moe": ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 80}),
    "qwen2 moe, some layers": ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 80, "decoder_sparse_step": 2}),
    "qwen3 moe": ("qwen3_moe", {**MOE, "mlp_only_layers": [1]}),
}
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "dtype": "bfloat16",
}
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_diff", [False, True])
def test_parameters_are_those_of_the_model_that_transformers_builds(layout: str, is_diff: bool):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, extra = LAYOUTS[layout]
    values = {key: value for key, value in {**TINY, **extra}.items() if value is not None}
    config = AutoConfig.for_model(kind, **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # is_diff: what a checkpoint's config.json holds; what equals the class's default is not in it
    plain = config.to_diff_dict() if is_diff else config.to_dict()
    size = measure_model({"model_type": kind, **plain})
    assert size.parameters == sum(weight.numel() for weight in model.parameters())
    assert not size.is_estimate


def test_the_demo_model_is_measured_by_its_files(demo_model: Path):
    config = json.loads((demo_model / "config.json").read_text())
    size = measure_model(config, str(demo_model))
    assert size.has_files
    assert size.parameters == sum(count for _, count in read_headers(str(demo_model)).values())
    data = (demo_model / "model.safetensors").stat().st_size
    assert size.weight_bytes == pytest.approx(data, rel=0.01)
    assert size.weight_bytes == measure_model(config).weight_bytes
    assert size.kv_bytes_per_token == 2 * 4 * 2 * 64 * 2


def test_a_token_meets_two_of_eight_experts():
    size = measure_model(MIXTRAL)
    assert size.parameters / 1e9 == pytest.approx(46.7, abs=0.1)
    assert size.active_parameters / 1e9 == pytest.approx(12.9, abs=0.1)
    assert size.is_moe
    assert size.size_class == "64b-a16b"  # what its jobs teach is not taken for a dense model's of 12.9


@pytest.mark.parametrize(
    "config,arguments,gigabytes,arithmetic",
    [
        ({}, {}, 16.06, "bf16"),
        ({"dtype": "float32"}, {}, 16.06, "bf16"),
        ({}, {"quantization": "fp8"}, 9.08, "fp8"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, 9.08, "fp8"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, {}, 5.7, "bf16"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {}}},
                }
            },
            {},
            9.08,
            "int8",
        ),
    ],
)
def test_bytes_follow_dtype_and_quantization(config: dict, arguments: dict, gigabytes: float, arithmetic: str):
    size = measure_model({**LLAMA_8B, **config}, arguments=arguments)
    assert size.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert size.arithmetic == arithmetic


@pytest.mark.parametrize(
    "config, arguments",
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, {}),
        ({}, {"quantization": "fp8"}),
        ({}, {"kv_cache_dtype": "fp8"}),
        ({}, {"dtype": "bfloat16"}),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, {}),
        ({"text_config": {"model_type": "llama"}}, {}),
        ({}, {"load_format": "bitsandbytes"}),
        ({"model_type": "unheard_of"}, {}),
        ({"hidden_size": "wide"}, {}),
    ],
)
def test_who_may_want_formats_of_their_own_is_not_plain(config: dict, arguments: dict):
    assert plain_parameters({**LLAMA_8B, **config}, arguments) is None


def test_a_dense_decoder_is_plain_and_experts_are_not():
    assert plain_parameters(LLAMA_8B, {"load_format": "dummy"}) == measure_model(LLAMA_8B).parameters
    assert plain_parameters(MIXTRAL, {}) is None


def test_float32_is_kept_where_it_is_asked_for():
    assert measure_model(LLAMA_8B, dtype="float32").weight_bytes == 2 * measure_model(LLAMA_8B).weight_bytes


def test_the_kv_cache_of_a_token():
    assert measure_model(LLAMA_8B).kv_bytes_per_token == 131072
    assert measure_model(LLAMA_8B, arguments={"kv_cache_dtype": "fp8"}).kv_bytes_per_token == 65536
    assert measure_model({**LLAMA_8B, "kv_lora_rank": 512}).kv_bytes_per_token is None


def test_shares_of_a_device():
    size = measure_model(LLAMA_8B)
    assert size.device_weight_bytes(2, 1) == size.weight_bytes / 2
    assert size.device_weight_bytes(1, 2) == size.weight_bytes / 2
    tied = measure_model({**LLAMA_8B, "tie_word_embeddings": True})  # both ends hold the one matrix
    assert tied.device_weight_bytes(1, 2) == (tied.weight_bytes + tied.embedding_bytes) / 2
    assert size.device_kv_bytes(4, 1) == size.kv_bytes_per_token // 4
    assert size.device_kv_bytes(16, 2) == size.kv_bytes_per_token // 16  # one head of eight, half of the layers


def test_operations_of_a_token_grow_with_what_it_attends_to():
    size = measure_model(LLAMA_8B)
    assert size.flop_per_token(0) == pytest.approx(2 * 7.5e9, rel=0.01)
    assert size.flop_per_token(1000) - size.flop_per_token(0) == 4 * 4096 * 1000 * 32


def test_an_unknown_architecture_says_so():
    assert measure_model({**LLAMA_8B, "model_type": "novel"}).is_estimate


def test_a_nested_text_model_is_the_one_that_is_measured():
    nested = {"model_type": "gemma3", "text_config": {**LLAMA_8B, "model_type": "llama"}}
    assert measure_model(nested) == measure_model(LLAMA_8B)


def test_a_broken_weight_file_is_the_engines_business(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    assert not measure_model(LLAMA_8B, str(tmp_path)).has_files
