"""The time when a replica's rows come in: those that its engine has got already can be ordered no more."""

from __future__ import annotations

import math

PATIENCE_S = 1.0
"""After the last unit that came; then it was the last one. Reading a unit takes a fraction of that."""


class Gathering:
    """Lets the engine have a part of what came first, until the rest is there to be ordered with it.

    Units come one by one, within seconds, and an engine takes twice as many rows as it computes at a time. So the first
    units would go into it as they are in the input, at the cost of a tenth of all prefix hits; see docs/decisions/0028.
    """

    def __init__(self, num_units: int, first_tokens: int | None) -> None:
        """Args: units that the replica holds once all are there, and tokens in the engine before; null for no bound."""
        self._num_left = num_units
        self._first_tokens = math.inf if first_tokens is None else first_tokens
        self._until = math.inf
        self.is_over = first_tokens is None

    def came(self, now: float) -> None:
        """Notes that a unit has come.

        Args:
            now: seconds of a clock that does not go back.
        """
        self._look(now)
        self._num_left -= 1
        self._until = now + PATIENCE_S

    def has_room(self, tokens: int, now: float) -> bool:
        """Returns whether another row may go into the engine.

        Args:
            tokens: prompt tokens of the rows that are in it.
            now: as in `came`.
        """
        self._look(now)
        return self.is_over or tokens < self._first_tokens

    def _look(self, now: float) -> None:
        self.is_over = self.is_over or self._num_left <= 0 or now >= self._until
