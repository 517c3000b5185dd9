"""How sure a figure is: 95 % intervals of shares and means, and of differences between two models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""Of the normal distribution, 95 % lie within so many standard deviations."""
CHUNK = 4_000_000
"""Draws of the bootstrap that are held at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, rows: int) -> Interval:
    """Returns a share with Wilson's score interval: right also near 0 and 1, where the normal one has no width.

    Source: Wilson 1927; Newcombe, Statistics in Medicine 17 (1998) 857-872, method 3.

    Args:
        hits: of ``rows``.
        rows: at least one.
    """
    share, square = hits / rows, Z * Z
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = Z * math.sqrt(share * (1 - share) / rows + square / (4 * rows * rows)) / (1 + square / rows)
    # at the ends of the scale the formula gives them but for rounding
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == rows else min(1.0, middle + half)
    return Interval(value=share, low=low, high=high)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """Returns the difference of two shares on the same rows, first - second.

    Source: Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10: Wilson's intervals of both, squared and
    added, with the correlation of the pairs. It has a width also where no row differs.

    Args:
        first: bool for each row.
        second: the same rows.
    """
    rows = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    one, two = wilson(both + only_first, rows), wilson(both + only_second, rows)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    excess = both * neither - only_first * only_second
    if excess > 0:
        excess = max(excess - rows / 2, 0.0)
    phi = excess / math.sqrt(margins) if margins else 0.0
    return _square_and_add(one, two, phi)


def difference(one: Interval, two: Interval) -> Interval:
    """Returns the difference of two shares on different rows, one - two; both have Wilson's intervals.

    Source: Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10.
    """
    return _square_and_add(one, two, 0.0)


def _square_and_add(one: Interval, two: Interval, phi: float) -> Interval:
    def length(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    value = one.value - two.value
    low = value - length(one.value - one.low, two.high - two.value)
    high = value + length(one.high - one.value, two.value - two.low)
    return Interval(value=value, low=max(-1.0, low), high=min(1.0, high))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Returns McNemar's exact p: how likely so uneven a split of the rows that differ is, where models are alike.

    Args:
        first: bool for each row.
        second: the same rows.
    """
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    differing, fewer = wins + losses, min(wins, losses)
    logs = [_log_choose(differing, k) - differing * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * sum(map(math.exp, logs)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def bootstrap(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], samples: int, seed: int) -> Interval:
    """Returns a figure of sums over rows with its percentile interval under drawing rows anew.

    Rows are drawn, not tokens: the tokens of an answer depend on each other.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), 13.3.

    Args:
        sums: float64, shape (rows, k): what each row adds.
        statistic: from totals, shape (n, k), to figures, shape (n,).
        samples: how often all rows are drawn.
        seed: of the draws.
    """
    rows = len(sums)
    random = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    step = max(1, CHUNK // rows)
    for start in range(0, samples, step):
        drawn = random.integers(rows, size=(min(step, samples - start), rows))
        found.append(statistic(sums[drawn].sum(axis=1)))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    return Interval(value=value, low=float(low), high=float(high))
