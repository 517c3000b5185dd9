"""Histograms of lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ledger.lengths import add_lengths, count_lengths

lengths = st.lists(st.none() | st.integers(0, 1 << 20))


@pytest.mark.parametrize(
    "tokens, counts",
    [([], []), ([0, None], [2]), ([1], [0, 1]), ([2, 3, 4, 7, 8], [0, 0, 2, 2, 1]), ([1 << 10], [0] * 11 + [1])],
)
def test_lengths_are_counted_by_powers_of_two(tokens: list[int | None], counts: list[int]) -> None:
    assert count_lengths(tokens) == counts


@given(lengths, lengths)
def test_two_histograms_are_that_of_both(some: list[int | None], others: list[int | None]) -> None:
    both = add_lengths(count_lengths(some), count_lengths(others))
    assert both == count_lengths(some + others)
    assert sum(both) == len(some) + len(others)
