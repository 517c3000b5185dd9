"""Keys and values of all sequences, in place: each has a slot with room for a whole context."""

from __future__ import annotations

import mmap

import numpy as np

from serve.engine.onnx.layout import EdgeModel

MAP_NORESERVE = 0x4000
"""Linux's, which Python 3.11 has no name for."""
PAD_TOKENS = 16
"""Beyond the context: slots a power of two apart would fall on the same lines of the processor's caches."""


class KvCache:
    """Slots of address space; the machine gives memory to what was written, page by page."""

    def __init__(self, model: EdgeModel, slots: int, context: int, budget_tokens: int) -> None:
        """Args.

        model: shapes.
        slots: sequences at a time.
        context: tokens of a sequence at most.
        budget_tokens: tokens whose memory may be held, idle slots included.
        """
        room = context + PAD_TOKENS
        shape = (2 * model.layers, slots, model.kv_heads, room, model.head_dim)
        # private: pages of shared memory cannot be given back; unreserved: most will never be written
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._memory = mmap.mmap(-1, 4 * int(np.prod(shape)), flags=flags)
        # pages of 2 MiB would give memory to what was never written
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.layers = np.frombuffer(self._memory, np.float32).reshape(shape)
        """Float32 [2 x layers, slots, kv_heads, room, head_dim]; a layer's keys, then its values."""
        self._written = np.zeros(slots, np.int64)
        self._budget = budget_tokens

    def note(self, slot: int, tokens: int) -> None:
        """Tells that a slot holds, or is about to hold, so many tokens."""
        self._written[slot] = max(self._written[slot], tokens)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copies the first tokens of a slot to another."""
        self.layers[:, target, :, :tokens] = self.layers[:, source, :, :tokens]
        self.note(target, tokens)

    def trim(self, lengths: list[int]) -> None:
        """Gives memory back where more is held than the budget allows.

        Args:
            lengths: tokens that are in use, for each slot from the first one; slots after them are idle.
        """
        if int(self._written.sum()) <= self._budget:
            return
        stride = self.layers.strides
        for slot in np.flatnonzero(self._written):
            kept = lengths[slot] if slot < len(lengths) else 0
            for layer in range(self.layers.shape[0]):
                for head in range(self.layers.shape[2]):
                    first = layer * stride[0] + slot * stride[1] + head * stride[2]
                    begin = -(-(first + kept * stride[3]) // mmap.PAGESIZE) * mmap.PAGESIZE
                    end = (first + stride[2]) // mmap.PAGESIZE * mmap.PAGESIZE
                    if end > begin:
                        self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)
            self._written[slot] = kept
