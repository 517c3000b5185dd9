"""A trace for autoscaling from a seeded generator: quiet stretches and peaks of 10 x."""

from __future__ import annotations

import numpy as np

from pipelines.simulate.trace import Trace


def bursty(seed: int, seconds: float = 7200.0, base: float = 6.0, peak: float = 10.0) -> Trace:
    """Returns Poisson arrivals whose rate is even, silent for minutes at times, and rises to a peak now and then.

    A peak comes every 8 to 20 minutes: it rises within 120 to 300 s, stays for 60 to 240 s, falls as it rose. Half of
    the time between two of them, two to five minutes are silent. Lengths are log-normal: prompts of 1,200 tokens on
    average (at most 16,000), answers of 200 (at most 2,000).

    Args:
        seed: of all draws.
        seconds: its length.
        base: requests/s outside of peaks and silence.
        peak: the rate of a peak over `base`.
    """
    rng = np.random.default_rng(seed)
    rate = np.ones(int(seconds))
    at = rng.uniform(240, 600)
    while at < seconds:
        rise, stay = rng.uniform(120, 300), rng.uniform(60, 240)
        shape = np.interp(
            np.arange(len(rate)), [at, at + rise, at + rise + stay, at + 2 * rise + stay], [1, peak, peak, 1]
        )
        rate = np.maximum(rate, shape)
        gap = rng.uniform(480, 1200)
        end = at + 2 * rise + stay
        if rng.random() < 0.5:
            silent = rng.uniform(120, 300)
            begin = int(end + rng.uniform(0, max(0.0, gap - silent)))
            rate[begin : begin + int(silent)] = 0
        at = end + gap
    counts = rng.poisson(base * rate)
    arrival = np.sort(np.repeat(np.arange(len(rate)), counts) + rng.random(counts.sum()))
    return Trace(
        arrival_s=arrival - arrival[0],
        prompt=np.clip(rng.lognormal(np.log(1200) - 0.5, 1.0, len(arrival)), 1, 16_000).astype(np.int64),
        answer=np.clip(rng.lognormal(np.log(200) - 0.32, 0.8, len(arrival)), 1, 2_000).astype(np.int64),
    )
