"""What a policy sees, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What one replica was measured to do."""

    prefill_tokens_per_s: float
    """Prompt tokens, where it does nothing else."""
    decode_tokens_per_s: float
    """Answer tokens, where it does nothing else and holds as many sequences as it may."""
    max_num_seqs: int
    """Requests that it computes at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """A fleet at one moment. Rates are of arrivals, in tokens/s; an answer counts with its expected length."""

    now_s: float
    """A clock's seconds; only differences count."""
    metrics_age_s: float
    """How old the rest is."""
    target: int
    """Replicas that were asked for last."""
    running: int
    """Replicas that take requests."""
    starting: int
    draining: int
    """Replicas that finish what they have and then leave: they help nobody who comes now."""
    running_requests: int
    waiting_requests: int
    """Requests whose answer has not begun, in replicas or in front of them."""
    waiting_prompt_tokens: float
    """Of those requests, what is to be computed before their answers begin."""
    outstanding_answer_tokens: float
    """Answer tokens, expected, of all requests that have not ended."""
    short_prompt_tokens_per_s: float
    """Over ``autoscale.short_window_s``."""
    short_answer_tokens_per_s: float
    long_prompt_tokens_per_s: float
    """Over ``autoscale.long_window_s``."""
    long_answer_tokens_per_s: float
    least_prompt_tokens_per_s: float
    """What comes at least, by the last moments: see `Arrivals.least_rates`."""
    least_answer_tokens_per_s: float
    ttft_s: float | None
    """The percentile of ``autoscale.slo_percentile``, of answers that began in the long window; null where none did."""
    tpot_s: float | None
    """As ``ttft_s``, of answers that ended."""
    start_s: float
    """What a replica takes from the decision to its first request."""
    capacity: Capacity

    @property
    def requests(self) -> int:
        """All that have not ended."""
        return self.running_requests + self.waiting_requests


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """How many replicas there should be, those that start included and those that drain not."""

    target: int
    reason: str
    """A few words for the log."""
