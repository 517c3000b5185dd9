"""Histograms of lengths in tokens, coarse enough to stand in every done-mark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest


def count_lengths(tokens: Iterable[int | None]) -> list[int]:
    """Counts lengths by their number of binary digits.

    Returns:
        First the number of empty ones, then of those of 1 token, of 2 to 3, of 4 to 7, and so on.
    """
    counts = Counter((length or 0).bit_length() for length in tokens)
    return [counts[digits] for digits in range(max(counts, default=-1) + 1)]


def add_lengths(some: Iterable[int], others: Iterable[int]) -> list[int]:
    """Adds two histograms up."""
    return [a + b for a, b in zip_longest(some, others, fillvalue=0)]
