"""Which rows make a step: a pure function of their lengths and the seed, so that a run can go on where it broke."""

from __future__ import annotations

import random
from collections.abc import Sequence

_BATCHES_SORTED = 16
"""Batches cut from one lot of rows sorted by length: little padding, and still another mixture each time."""


def plan_steps(lengths: Sequence[int], steps: int, batch_size: int, seed: int) -> list[list[int]]:
    """Returns the rows of each step.

    Every row is used once before any is used again; each step has `batch_size` rows, or all where there are fewer.

    Args:
        lengths: Tokens of each row.
        steps: How many steps there are.
        batch_size: Rows of a step.
        seed: Of the order.
    """
    drawn = random.Random(f"{seed}/order")
    size = min(batch_size, len(lengths))
    planned: list[list[int]] = []
    while len(planned) < steps:
        rows = list(range(len(lengths)))
        drawn.shuffle(rows)
        for at in range(0, len(rows), size * _BATCHES_SORTED):
            lot = sorted(rows[at : at + size * _BATCHES_SORTED], key=lambda row: lengths[row])
            batches = [lot[i : i + size] for i in range(0, len(lot) - size + 1, size)]
            drawn.shuffle(batches)
            planned += batches
    return planned[:steps]


def is_on_policy(step: int, share: float, seed: int) -> bool:
    """Whether a step's answers are written by the student."""
    return random.Random(f"{seed}/policy/{step}").random() < share


def share_of(rows: list[int], rank: int, workers: int) -> list[int]:
    """Returns a worker's part of a step's rows: neighbours in length go to different workers."""
    return rows[rank::workers]
