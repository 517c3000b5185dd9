"""The root of `manta simulate`, what a simulated replica does, and how a trace is replayed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from conf.errors import UserError
from conf.schema.autoscale import AutoscaleSpec
from conf.schema.cluster import ClusterSpec


@dataclass(kw_only=True, slots=True)
class ReplicaSpec:
    """A replica as it was measured. A step of its engine takes ``step_s``, and what prompts and answers add."""

    start_s: float = 45.0
    """Seconds from the decision to the first request that it takes. It is paid for from the decision on."""
    prefill_tokens_per_s: float = 20_000.0
    """Prompt tokens that a step computes a second, beside ``step_s``."""
    step_s: float = 0.012
    """What a step takes at least: weights are read, the CPU side schedules."""
    answer_token_s: float = 0.00006
    """What each sequence that is being answered adds to a step."""
    step_tokens: int = 2048
    """Tokens that a step computes at most (vLLM's max_num_batched_tokens)."""
    max_num_seqs: int = 128
    """Sequences that are computed at a time."""
    max_ongoing_requests: int | None = None
    """Requests that it holds at a time, waiting ones included; others wait in front. Twice max_num_seqs if null."""
    kv_tokens: int = 400_000
    """Tokens that its KV cache has room for."""
    num_devices: int = 1
    """Devices that it takes, for the cost."""

    def __post_init__(self) -> None:
        rules = [
            ("start_s", 0 <= self.start_s < math.inf, ">= 0"),
            ("prefill_tokens_per_s", 0 < self.prefill_tokens_per_s < math.inf, "> 0"),
            ("step_s", 0 < self.step_s < math.inf, "> 0"),
            ("answer_token_s", 0 <= self.answer_token_s < math.inf, ">= 0"),
            ("max_num_seqs", self.max_num_seqs >= 1, ">= 1"),
            ("step_tokens", self.step_tokens > self.max_num_seqs, "> replica.max_num_seqs"),
            ("max_ongoing_requests", self.max_ongoing_requests is None or self.max_ongoing_requests >= 1, ">= 1"),
            ("kv_tokens", self.kv_tokens >= 1, ">= 1"),
            ("num_devices", self.num_devices >= 1, ">= 1"),
        ]
        for key, holds, rule in rules:
            if not holds:
                raise UserError(f"replica.{key} must be {rule}, got {getattr(self, key)}")

    @property
    def ongoing_requests(self) -> int:
        """Requests that it holds at a time."""
        return self.max_ongoing_requests or 2 * self.max_num_seqs


@dataclass(kw_only=True, slots=True)
class SimulateSpec:
    """How a trace is replayed, and where the outcome goes."""

    copies: int = 1
    """Each request arrives so many times: the same shape, more of it."""
    jitter_s: float = 5.0
    """Copies arrive up to this much earlier or later, evenly drawn."""
    speed_up: float = 1.0
    """Arrivals come so many times as fast."""
    report_s: float = 1.0
    """Seconds from one report of the replicas to the next, as in `manta serve`: a decision knows what was when they
    last told. 0 has it know what is."""
    max_requests: int | None = None
    """Only the first so many of the trace; null takes all."""
    initial_replicas: int | None = None
    """Replicas that run when the trace begins; for the busiest ten seconds of its first minute where null."""
    seed: int = 0
    """Of what is drawn."""
    is_compared: bool = True
    """Also replay against a fixed fleet for the busiest ten seconds, and one for the mean."""
    json_file: str | None = None
    """Write the outcome as JSON to this file; - prints it in the place of the page, as --json does."""
    plot_file: str | None = None
    """Write an HTML page with plots of replicas against load to this file."""

    def __post_init__(self) -> None:
        rules = [
            ("copies", self.copies >= 1, ">= 1"),
            ("jitter_s", 0 <= self.jitter_s < math.inf, ">= 0"),
            ("report_s", 0 <= self.report_s < math.inf, ">= 0"),
            ("speed_up", 0 < self.speed_up < math.inf, "> 0"),
            ("max_requests", self.max_requests is None or self.max_requests >= 1, ">= 1 or null"),
            ("initial_replicas", self.initial_replicas is None or self.initial_replicas >= 0, ">= 0 or null"),
            ("seed", self.seed >= 0, ">= 0"),
        ]
        for key, holds, rule in rules:
            if not holds:
                raise UserError(f"simulate.{key} must be {rule}, got {getattr(self, key)}")


@dataclass(kw_only=True, slots=True)
class SimulateJob:
    """A trace against an autoscaler."""

    trace: str = MISSING
    """Arrivals and lengths: Azure's CSV, Mooncake's JSONL, or CSV, JSONL or Parquet with columns arrival_s,
    prompt_tokens, answer_tokens."""
    autoscale: AutoscaleSpec = field(default_factory=AutoscaleSpec)
    replica: ReplicaSpec = field(default_factory=ReplicaSpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    simulate: SimulateSpec = field(default_factory=SimulateSpec)
