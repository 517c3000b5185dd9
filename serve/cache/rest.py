"""Leaves a server alone that keeps failing, so that requests do not wait for it one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable

_FAILURES = 3

_log = logging.getLogger(__name__)


class Rest:
    """Begins after three failures in a row."""

    def __init__(self, name: str, seconds: float, clock: Callable[[], float]) -> None:
        """Takes what the log calls the server, and how long it is left alone."""
        self._name, self._seconds, self._clock = name, seconds, clock
        self._num_failures = 0
        self._until = -float("inf")

    @property
    def is_on(self) -> bool:
        """Whether the server is to be left alone."""
        return self._clock() < self._until

    def failed(self, error: Exception) -> None:
        """Counts a failure. The log gets its kind alone: its text may hold an address or what was asked."""
        self._num_failures += 1
        if self._num_failures >= _FAILURES:
            self._until = self._clock() + self._seconds
            _log.warning("%s fails (%s): left alone for %g s", self._name, type(error).__name__, self._seconds)

    def succeeded(self) -> None:
        """Forgets failures."""
        self._num_failures = 0
