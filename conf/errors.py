"""The user's mistake, as one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user typed or pointed at: printed as one line, exit code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?`` for the closest of ``known``, else an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
