"""CUDA graphs of an engine's steps: how many tokens a step may have and still be launched as one, and how much of it.

A step that mixes prefill and decode has more tokens than vLLM captures (512), so it was launched kernel by kernel, from
Python: 25 of 43 ms a step of an 8 B model with 512 sequences, for which the GPU waited; see docs/decisions/0015. Where
attention can be captured, a graph is the whole step and nothing is compiled; see docs/decisions/0023.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 512, 16), *range(512, 2048, 64), *range(2048, 4097, 128))
"""Tokens of a step, in rising order; a step takes the next size up. vLLM's own to 512 (vllm/config/vllm.py,
_set_cudagraph_sizes, 0.26-0.32), then steps of at most an eighth. A step of more than 4,096 tokens keeps a GPU busy for
longer than its launch takes. What is above max_num_batched_tokens vLLM leaves out."""
HOPPER = re.compile(r"\b(GH200|H20|H100|H200|H800)\b")
"""Names of GPUs for which vLLM takes FlashAttention 3, whose kernels a graph can hold in a mixed step. With others' it
would leave such steps out of graphs. Source: vllm/v1/attention/backends/flash_attn.py, _cudagraph_support (0.26)."""
WHOLE_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of plain attention and dense layers."""
WHOLE_METHOD = "compressed-tensors"
"""How our recipes write quantized weights: FP8 is as fast uncompiled, and is ready in 56 s instead of 90."""
_UNLIKE = (
    "attention_backend",
    "attention_config",
    "hf_overrides",
    "kv_cache_dtype",
    "kv_transfer_config",
    "optimization_level",
    "quantization",
    "speculative_config",
)
"""Arguments that may bring other attention or other layers."""
_SAID = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_mode", "mode")
"""What a user says of graphs, or of compiling as a whole, in `compilation_config` or beside it, keeps ours away."""
COUNTED_SINCE = (0, 32)
"""vLLM's version in which its newer model runner counts the graphs' memory before it sizes the KV cache; 0.26 does not,
those between were not looked at."""
UNCOUNTED_FRACTION = 0.85
"""gpu_memory_utilization before that, for vLLM's 0.9: the graphs of an 8 B model take 4 GB more than its own."""


def with_graphs(
    arguments: Mapping[str, Any], config: Mapping[str, Any] | None = None, gpu: str | None = None
) -> dict[str, Any]:
    """Returns engine arguments that capture steps of up to 4,096 tokens, unless they say themselves what to capture.

    Args:
        arguments: for an engine on a GPU.
        config: the model's config.json; null where it cannot be read.
        gpu: its name, as the driver says it; null where that is not known.
    """
    said = arguments.get("compilation_config", {})
    is_said = not isinstance(said, Mapping) or any(name in said or name in arguments for name in _SAID)
    # each size would be captured once for every number of active adapters, and what has no answers is not measured
    is_other = arguments.get("enable_lora", False) or arguments["runner"] != "generate"
    if is_said or is_other or arguments.get("enforce_eager"):
        return dict(arguments)
    memory = {} if counts_graphs() else {"gpu_memory_utilization": UNCOUNTED_FRACTION}
    if "kv_cache_memory_bytes" in arguments:  # the cache has its size already
        memory = {}
    whole = {"mode": 0, "cudagraph_mode": "FULL"} if not said and captures_whole(arguments, config or {}, gpu) else {}
    return {**memory, **arguments, "compilation_config": {**said, **whole, "cudagraph_capture_sizes": list(SIZES)}}


def captures_whole(arguments: Mapping[str, Any], config: Mapping[str, Any], gpu: str | None) -> bool:
    """Says whether steps are captured attention and all, so that torch.compile has nothing to split and is left out.

    Args:
        arguments: of the engine.
        config: the model's config.json.
        gpu: its name, as the driver says it.
    """
    method = (config.get("quantization_config") or {}).get("quant_method", WHOLE_METHOD)
    is_plain = config.get("model_type") in WHOLE_TYPES and method == WHOLE_METHOD
    is_float32 = "float32" in (arguments["dtype"], config.get("dtype", config.get("torch_dtype")))
    is_one = arguments["tensor_parallel_size"] == arguments["pipeline_parallel_size"] == 1
    is_hopper = HOPPER.search(gpu or "") is not None
    return is_hopper and is_plain and is_one and not is_float32 and not any(arguments.get(name) for name in _UNLIKE)


def counts_graphs() -> bool:
    """Says whether the vLLM that is installed leaves room for its graphs."""
    try:
        numbers = re.findall(r"\d+", version("vllm"))[:2]
    except PackageNotFoundError:
        return True
    return tuple(map(int, numbers)) >= COUNTED_SINCE
