"""A prefix cache like an engine's, to see what an order of requests does to it."""

from __future__ import annotations

from collections.abc import Iterable

BLOCK_TOKENS = 16


class PrefixCache:
    """Blocks of prefixes; the one whose use lies back the longest goes first, of one request's the last block."""

    def __init__(self, num_blocks: int | None) -> None:
        self._num_blocks = num_blocks
        self._blocks: dict[int, None] = {}  # in the order of use
        self.hit_tokens = self.prompt_tokens = 0

    def ask(self, tokens: bytes) -> None:
        """Looks a prompt up, 4 bytes a token, and keeps its blocks. As vLLM does, the last token is always computed."""
        size = 4 * BLOCK_TOKENS
        names, before = [], 0
        for end in range(size, len(tokens) + 1, size):
            before = hash((before, tokens[end - size : end]))
            names.append(before)
        usable = names[: (len(tokens) // 4 - 1) // BLOCK_TOKENS]
        hits = next((index for index, name in enumerate(usable) if name not in self._blocks), len(usable))
        self.hit_tokens += hits * BLOCK_TOKENS
        self.prompt_tokens += len(tokens) // 4
        for name in reversed(names):
            self._blocks.pop(name, None)
            self._blocks[name] = None
        while self._num_blocks is not None and len(self._blocks) > self._num_blocks:
            del self._blocks[next(iter(self._blocks))]


def hit_rate(prompts: Iterable[bytes], cache_tokens: int | None = None) -> float:
    """The share of prompt tokens that a cache of so many tokens held; of one without bounds where null."""
    cache = PrefixCache(None if cache_tokens is None else cache_tokens // BLOCK_TOKENS)
    for prompt in prompts:
        cache.ask(prompt)
    return cache.hit_tokens / cache.prompt_tokens
