"""How many equal requests an input has, from a sample of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def duplicate_share(keys: Iterable[str], total_rows: int) -> float:
    """Returns the share of rows whose request another row makes too, all but the first of each.

    Of a sample the number of different requests in the whole is Chao's estimate, from those seen once and twice;
    rows that lie together in pieces make it an approximation.

    Args:
        keys: request keys of the rows that were looked at.
        total_rows: rows of the whole; as many as there are keys where all were looked at.

    Source: A. Chao, Nonparametric estimation of the number of classes in a population, 1984.
    """
    counts = Counter(keys)
    seen = sum(counts.values())
    if not seen:
        return 0.0
    distinct = float(len(counts))
    if total_rows > seen:
        often = Counter(counts.values())
        once, twice = often[1], often[2]
        distinct += once * (once - 1) / (2 * (twice + 1)) * (1 - seen / total_rows)
        # no more than there would be if what was not looked at held no duplicates at all
        distinct = min(distinct, len(counts) + total_rows - seen) if once else distinct
        return max(0.0, 1 - distinct / total_rows)
    return 1 - distinct / seen
