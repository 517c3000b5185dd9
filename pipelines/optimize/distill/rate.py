"""The learning rate over a run."""

from __future__ import annotations

import math

FLOOR = 0.02
"""What is left of the peak at the end."""

_PEAK_TIMES_WIDTH = 0.4
"""Adam's best rate falls as a model gets wider (https://arxiv.org/abs/2203.03466); 0.4 is the demo's."""


def peak_rate(wanted: float | None, hidden_size: int) -> float:
    """Returns the learning rate at its peak: the one that was asked for, or one for the model's width."""
    return _PEAK_TIMES_WIDTH / hidden_size if wanted is None else wanted


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Returns the share of the peak rate at a step, from 0: a straight rise, then a cosine.

    Args:
        step: From 0.
        steps: Of the run.
        warmup: Share of the steps in which it rises.
    """
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done))
