"""What prefixes the replicas hold, approximately: blocks of the prompts that were sent to each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import count, islice

STRIDE = 8
"""Blocks that are skipped at a time: who holds the last of them holds all of them."""


class PrefixIndex:
    """Block key -> bit mask of the replicas that hold it, and for each replica its blocks, the oldest first.

    A replica's part forgets as vLLM's KV cache does: what was not used for longest goes first, of one prompt the end
    before the beginning. So a replica that holds a block holds all before it, and a walk along a prompt's chain may
    stop at the first block that nobody holds.
    """

    def __init__(self, max_blocks: int) -> None:
        """Starts empty.

        Args:
            max_blocks: Blocks of all replicas together. A replica's share is an equal one, and never more than its own
                cache holds.
        """
        self._max_blocks = max_blocks
        self._holders: dict[int, int] = {}
        self._held: dict[int, OrderedDict[object, None]] = {}
        self._capacity: dict[int, int] = {}
        self._nameless = count()

    @property
    def num_blocks(self) -> int:
        """Blocks that are remembered of all replicas together."""
        return sum(map(len, self._held.values()))

    def place(self, slot: int, capacity_blocks: int) -> None:
        """A replica with an empty cache of so many blocks takes a slot (a bit's number), which must be free."""
        assert slot not in self._held, f"slot {slot} is taken"
        self._held[slot] = OrderedDict()
        self._capacity[slot] = capacity_blocks
        for other in self._held:
            self._trim(other)

    def drop(self, slot: int) -> None:
        """Forgets a replica and all that it holds."""
        del self._capacity[slot]
        for key in self._held.pop(slot):
            self._forget(slot, key)

    def match(self, keys: Iterable[int], among: int, size: int = 1) -> tuple[dict[int, int], list[int]]:
        """Returns how much of a prompt's beginning each replica holds, and the keys that were looked at.

        Replicas that hold none are left out; the walk ends at the first block that none holds.

        Args:
            keys: The prompt's chain (`block_keys`).
            among: Bit mask of the replicas that count.
            size: What a block counts.
        """
        found: dict[int, int] = {}
        walked: list[int] = []
        get = self._holders.get
        mask, chain = among, iter(keys)
        while chunk := list(islice(chain, STRIDE)):
            depth = len(walked)
            walked += chunk
            if get(chunk[-1], 0) & mask == mask:
                continue
            for key in chunk:
                kept = get(key, 0) & mask
                if kept != mask:
                    _note(found, mask & ~kept, depth * size)
                    mask = kept
                    if not mask:
                        return found, walked
                depth += 1
        _note(found, mask, len(walked) * size)
        return found, walked

    def hold(self, slot: int, keys: Sequence[int]) -> None:
        """A replica was sent a prompt: it holds its blocks, as those that were used last."""
        held, holders, bit = self._held[slot], self._holders, 1 << slot
        # the first block is used last: it goes after those that need it
        for key in reversed(keys):
            if key in held:
                held.move_to_end(key)
            else:
                held[key] = None
                holders[key] = holders.get(key, 0) | bit
        self._trim(slot)

    def fill(self, slot: int, num_blocks: int) -> None:
        """A replica has written blocks that no prompt is known to begin with (an answer): they push others out."""
        held = self._held[slot]
        for _ in range(min(num_blocks, self._room(slot))):
            held[("answer", next(self._nameless))] = None
        self._trim(slot)

    def _room(self, slot: int) -> int:
        return min(self._capacity[slot], self._max_blocks // len(self._held))

    def _trim(self, slot: int) -> None:
        held, room = self._held[slot], self._room(slot)
        while len(held) > room:
            self._forget(slot, held.popitem(last=False)[0])

    def _forget(self, slot: int, key: object) -> None:
        if not isinstance(key, int):
            return
        left = self._holders[key] & ~(1 << slot)
        if left:
            self._holders[key] = left
        else:
            del self._holders[key]


def _note(found: dict[int, int], mask: int, held: int) -> None:
    if held and mask:
        found.update(dict.fromkeys(_slots(mask), held))


@lru_cache(maxsize=4096)  # few sets of replicas hold a prefix that many requests begin with
def _slots(mask: int) -> tuple[int, ...]:
    return tuple(slot for slot in range(mask.bit_length()) if mask >> slot & 1)
