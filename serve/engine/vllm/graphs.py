"""CUDA graphs of an engine's steps: how many tokens a step may have and still be launched as one.

A step that mixes prefill and decode has more tokens than vLLM captures (512), so it was launched kernel by kernel, from
Python: 25 of 43 ms a step of an 8 B model with 512 sequences, for which the GPU waited; see docs/decisions/0015.
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
_SAID = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_mode", "mode")
"""What a user says of graphs, or of compiling as a whole, in `compilation_config` or beside it, keeps ours away."""
COUNTED_SINCE = (0, 32)
"""vLLM's version in which its newer model runner counts the graphs' memory before it sizes the KV cache; 0.26 does not,
those between were not looked at."""
UNCOUNTED_FRACTION = 0.85
"""gpu_memory_utilization before that, for vLLM's 0.9: the graphs of an 8 B model take 4 GB more than its own."""


def with_graphs(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns engine arguments that capture steps of up to 4,096 tokens, unless they say themselves what to capture.

    Args:
        arguments: for an engine on a GPU.
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
    return {**memory, **arguments, "compilation_config": {**said, "cudagraph_capture_sizes": list(SIZES)}}


def counts_graphs() -> bool:
    """Says whether the vLLM that is installed leaves room for its graphs."""
    try:
        numbers = re.findall(r"\d+", version("vllm"))[:2]
    except PackageNotFoundError:
        return True
    return tuple(map(int, numbers)) >= COUNTED_SINCE
