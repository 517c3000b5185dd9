"""Who sits where in the cache: sequences that are computed lie side by side from the first slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from serve.engine.onnx.answer import Answer
from serve.engine.onnx.cache import KvCache
from serve.engine.protocol import Request


@dataclass(eq=False, kw_only=True, slots=True)
class Sequence:
    """A prompt with one of its answers."""

    request: Request
    answer: Answer
    reserved: int
    """Tokens that it may come to."""
    length: int = 0
    """Tokens in the cache."""

    @property
    def is_read(self) -> bool:
        """Whether all of its prompt is in the cache."""
        return self.length >= len(self.request.token_ids)


@dataclass(kw_only=True, slots=True)
class Slots:
    """The sequences by slot; those whose prompts are being read are the last ones."""

    cache: KvCache
    count: int
    """Slots that there are."""
    budget: int
    """Tokens that all sequences together may come to."""
    held: list[Sequence] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.held)

    @property
    def num_read(self) -> int:
        """Sequences whose prompts have been read."""
        return next((slot for slot, sequence in enumerate(self.held) if not sequence.is_read), len(self.held))

    def has_room(self, sequences: int, tokens: int) -> bool:
        """Whether so many more sequences find slots, and the tokens that they may come to memory."""
        reserved = sum(sequence.reserved for sequence in self.held)
        return len(self.held) + sequences <= self.count and reserved + tokens <= self.budget

    def fork(self, sequence: Sequence, others: list[Sequence]) -> None:
        """Seats the other answers of a prompt that has been read, and copies what was read."""
        source = self.held.index(sequence)
        for other in others:
            self.cache.copy(source, len(self.held), sequence.length)
            other.length = sequence.length
            self.held.append(other)

    def leave(self, goes: Callable[[Sequence], bool]) -> None:
        """Takes out the sequences that ``goes`` says, and moves others down so that none is missing between them."""
        if not any(goes(sequence) for sequence in self.held):
            return
        stay = [sequence for sequence in self.held if not goes(sequence)]
        at = {id(sequence): slot for slot, sequence in enumerate(self.held)}
        read = [sequence for sequence in stay if sequence.is_read]
        reading = [sequence for sequence in stay if not sequence.is_read]
        # those that sit below their number stay where they are: the fewest tokens move
        seats: list[Sequence | None] = [None] * len(read)
        movers = []
        for sequence in read:
            slot = at[id(sequence)]
            if slot < len(read):
                seats[slot] = sequence
            else:
                movers.append(sequence)
        for slot, seated in enumerate(seats):
            if seated is None:
                mover = movers.pop()
                self.cache.copy(at[id(mover)], slot, mover.length)
                seats[slot] = mover
        for slot, sequence in enumerate(reading, len(read)):
            if at[id(sequence)] != slot:
                self.cache.copy(at[id(sequence)], slot, sequence.length)
        self.held = [sequence for sequence in seats if sequence is not None] + reading
