"""How long a request is expected to be, from those that ended."""

from __future__ import annotations

ANSWER_TOKENS = 128.0
"""Expected of an answer before one has ended."""
MEMORY = 1000
"""Requests over which expected lengths are averages, exponentially weighed."""
PRIOR = 10
"""Requests that what was expected at first counts as: those that end soonest are the shortest."""


class Mean:
    """An average that follows what comes."""

    def __init__(self, value: float, prior: float = 0.0) -> None:
        """Starts with a value that counts as so many."""
        self.value = value
        self._count = prior

    def add(self, amount: float, count: float) -> None:
        """Takes a sum over so many."""
        if count > 0:
            self._count += count
            self.value += (amount - count * self.value) / max(count, min(MEMORY, self._count))
