"""What a prefix cache could save at best."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

BLOCK_TOKENS = 16
"""Tokens of a block of vLLM's KV cache. Source: vllm/config/cache.py, block_size on CUDA (0.26-0.32)."""


def best_prefix_hit_rate(prompts: Iterable[Sequence[int]], block_tokens: int = BLOCK_TOKENS) -> float:
    """Returns the share of prompt tokens that a prefix cache without bounds would not have to compute.

    The cache holds whole blocks of the prompts that came before, in the order given, and never serves a prompt's last
    token. Tokens of answers are not counted.

    Args:
        prompts: token ids.
        block_tokens: tokens of a block.

    Source: vllm/v1/core/kv_cache_manager.py, get_computed_blocks (0.26-0.32).
    """
    known: set[int] = set()
    total = saved = 0
    for prompt in prompts:
        tokens = array("i", prompt)
        data, width = tokens.tobytes(), tokens.itemsize * block_tokens
        length = len(tokens)
        usable = (length - 1) // block_tokens
        total += length
        chain, is_hit = 0, True
        for index in range(length // block_tokens):
            # a block is known by all that comes before it too
            chain = hash((chain, data[index * width : (index + 1) * width]))
            if chain not in known:
                known.add(chain)
                is_hit = False
            elif is_hit and index < usable:
                saved += block_tokens
    return saved / total if total else 0.0
