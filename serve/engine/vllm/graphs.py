"""CUDA graphs of an engine's steps: how many tokens a step may have and still be launched as one, and how they are cut.

A step that mixes prefill and decode has more tokens than vLLM captures (512), so it was launched kernel by kernel, from
Python: 25 of 43 ms a step of an 8 B model with 512 sequences, for which the GPU waited; see docs/decisions/0015. What
is captured between two calls of attention need not be compiled for that, which is most of an engine's start; see
docs/decisions/0025.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from serve.engine.room import GRAPHED_FRACTION

SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 512, 16), *range(512, 2048, 64), *range(2048, 4097, 128))
"""Tokens of a step, in rising order; a step takes the next size up. vLLM's own to 512 (vllm/config/vllm.py,
_set_cudagraph_sizes, 0.26-0.32), then steps of at most an eighth. A step of more than 4,096 tokens keeps a GPU busy for
longer than its launch takes. What is above max_num_batched_tokens vLLM leaves out."""
COUNTED_SINCE = (0, 32)
"""vLLM's version in which its newer model runner counts the graphs' memory before it sizes the KV cache; 0.26 does not,
those between were not looked at."""
UNCOMPILED = "VLLM_USE_BREAKABLE_CUDAGRAPH"
"""vLLM's variable: at 1 it cuts a step where attention is called while it captures it, and compiles nothing. It is read
as vLLM's attention is imported. Source: vllm/compilation/breakable_cudagraph.py (0.32)."""
UNCOMPILED_SINCE = (0, 32)
"""The vLLM whose answers were checked so."""
_DENSE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Dense layers, for which vLLM has kernels as fast as what it compiles. In fewer than 16 bits compiling fuses more."""
_PLAIN = frozenset(
    (
        "disable_log_stats",
        "dtype",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "generation_config",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "load_format",
        "max_logprobs",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "model",
        "pipeline_parallel_size",
        "runner",
        "seed",
        "stream_interval",
        "structured_outputs_config",
        "tensor_parallel_size",
        "tokenizer",
        "trust_remote_code",
        "worker_extension_cls",
    )
)
"""Arguments with which it was measured, and those that change nothing of a step."""


def with_graphs(arguments: Mapping[str, Any], is_uncompiled: bool = False) -> dict[str, Any]:
    """Returns engine arguments that capture steps of up to 4,096 tokens.

    Args:
        arguments: of an engine on a GPU that has room for them; they leave graphs to us.
        is_uncompiled: whether vLLM runs with `UNCOMPILED`.
    """
    said = arguments.get("compilation_config", {})
    memory = {"gpu_memory_utilization": GRAPHED_FRACTION} if is_uncompiled or not counts_graphs() else {}
    if "kv_cache_memory_bytes" in arguments:  # the cache has its size already
        memory = {}
    return {**memory, **arguments, "compilation_config": {**said, "cudagraph_capture_sizes": list(SIZES)}}


def needs_no_compiling(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Says whether an engine on an NVIDIA GPU is as fast with `UNCOMPILED`, and ready sooner.

    Args:
        arguments: of the engine, which leave graphs to us.
        config: the model's config.json; empty where it cannot be read.
    """
    is_plain = _PLAIN.issuperset(arguments)
    is_one = arguments["tensor_parallel_size"] == arguments["pipeline_parallel_size"] == 1
    dtype = config.get("dtype", config.get("torch_dtype")) if arguments["dtype"] == "auto" else arguments["dtype"]
    has_16_bits = dtype in ("bfloat16", "float16") and not config.get("quantization_config")
    is_dense = config.get("architectures") in [[name] for name in _DENSE]
    return is_plain and is_one and has_16_bits and is_dense and _installed() >= UNCOMPILED_SINCE


def counts_graphs() -> bool:
    """Says whether the vLLM that is installed leaves room for its graphs."""
    return _installed() >= COUNTED_SINCE


def _installed() -> tuple[int, ...]:
    try:
        return tuple(map(int, re.findall(r"\d+", version("vllm"))[:2]))
    except PackageNotFoundError:
        return COUNTED_SINCE
