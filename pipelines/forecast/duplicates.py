"""How many equal requests an input has, from a sample of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def duplicate_share(keys: Iterable[str], total_rows: int) -> float:
    """Returns the share of rows whose request another row makes too, all but the first of each.

    Of a sample it is an estimate: requests seen three times and more are few ones that fill a part of the input; the
    pairs among the others say how often such a request stands in the whole.

    Args:
        keys: request keys of the rows that were looked at.
        total_rows: rows of the whole; as many as there are keys where all were looked at.
    """
    counts = Counter(keys)
    seen = sum(counts.values())
    if seen >= total_rows or not seen:
        return 1 - len(counts) / seen if seen else 0.0
    heavy = [count for count in counts.values() if count > 2]
    heavy_rows = sum(heavy)
    light = seen - heavy_rows
    fraction = heavy_rows / seen
    share = max(0.0, fraction - len(heavy) / total_rows)
    if light:
        pairs = sum(count == 2 for count in counts.values())
        copies = 1 + 2 * pairs * total_rows * (1 - fraction) / light**2
        share += (1 - fraction) * (1 - 1 / copies)
    return share
