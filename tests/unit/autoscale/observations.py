"""Observations for tests: a fleet that has nothing to do, but for what a test says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from serve.autoscale.observation import Capacity, Observation

CAPACITY = Capacity(prefill_tokens_per_s=10_000, decode_tokens_per_s=2_000, max_num_seqs=100)
IDLE = Observation(
    now_s=0.0,
    metrics_age_s=0.0,
    target=1,
    running=1,
    starting=0,
    draining=0,
    running_requests=0,
    waiting_requests=0,
    waiting_prompt_tokens=0.0,
    outstanding_answer_tokens=0.0,
    short_prompt_tokens_per_s=0.0,
    short_answer_tokens_per_s=0.0,
    long_prompt_tokens_per_s=0.0,
    long_answer_tokens_per_s=0.0,
    least_prompt_tokens_per_s=0.0,
    least_answer_tokens_per_s=0.0,
    ttft_s=None,
    tpot_s=None,
    start_s=30.0,
    capacity=CAPACITY,
)


def fleet(size: int, load: float = 0.0, **changes: Any) -> Observation:
    """A fleet of a size at which so many replicas' worth of prompts arrive, over both windows."""
    tokens = load * CAPACITY.prefill_tokens_per_s
    rates = {"short_prompt_tokens_per_s": tokens, "long_prompt_tokens_per_s": tokens}
    return replace(IDLE, target=size, running=size, **{**rates, **changes})
