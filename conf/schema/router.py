"""How a service chooses the replica that answers a request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from conf.errors import UserError


class RouterPolicy(Enum):
    """The rule that chooses a replica.

    ``prefix`` weighs the prompt's tokens that a replica holds in its KV cache against the work that waits there;
    ``least_tokens`` looks at the waiting work alone, ``power_of_two`` compares it between two replicas drawn at random,
    ``round_robin`` goes round.
    """

    prefix = "prefix"
    least_tokens = "least_tokens"
    power_of_two = "power_of_two"
    round_robin = "round_robin"


@dataclass(kw_only=True, slots=True)
class RouterSpec:
    """The router: what a replica's load weighs, and what is remembered of its KV cache."""

    num_replicas: int = 1
    """Routers beside each proxy. What one has sent, another hears of from the replicas, some 100 ms later."""
    policy: RouterPolicy = RouterPolicy.prefix
    block_tokens: int = 128
    """Prefixes are compared in blocks of this many tokens. Smaller finds more of short prompts and costs more time."""
    bytes_per_token: float = 4.0
    """UTF-8 bytes of a prompt's text for each of its tokens, on average: the router sees text, not tokens."""
    prefill_weight: float = 2.0
    """A token of the prompt that a replica has to compute, for each token that waits there. 1 is the shortest wait for
    this request; more keeps prefixes together, for what is held twice takes room from others."""
    queue_weight: float = 1.0
    """What is added to ``prefill_weight`` for each request that waits at the replica: others wait for it, too."""
    decode_weight: float = 1.0
    """An expected token of an answer, for each token of a prompt, in a replica's load."""
    min_match_fraction: float = 0.1
    """Where no replica holds this much of the prompt, ``fallback`` decides."""
    fallback: RouterPolicy = RouterPolicy.power_of_two
    """The rule for such prompts: ``power_of_two``, or ``least_tokens``, which is better where one router sees all
    requests and worse where several that know little of each other would all pick the same replica."""
    imbalance_bound: float = 1.5
    """A replica that has more than this many times the mean waiting tokens, and the slack, gets nothing more."""
    imbalance_slack_tokens: int = 8192
    """Waiting tokens beyond the bound that count as balanced: a long prompt or two."""
    max_blocks: int = 1_000_000
    """Blocks that are remembered of all replicas together; some 220 bytes each, where one replica holds them."""
    max_sessions: int = 100_000
    """Sessions whose last replica is remembered."""
    stale_after_s: float = 900.0
    """A request of which no end was heard for this long counts as ended."""

    def __post_init__(self) -> None:
        rules = [
            ("num_replicas", self.num_replicas >= 1, ">= 1"),
            ("block_tokens", self.block_tokens >= 1, ">= 1"),
            ("bytes_per_token", 0.1 <= self.bytes_per_token <= 64, "in [0.1, 64]"),
            ("prefill_weight", 0 <= self.prefill_weight < math.inf, ">= 0"),
            ("queue_weight", 0 <= self.queue_weight < math.inf, ">= 0"),
            ("decode_weight", 0 <= self.decode_weight < math.inf, ">= 0"),
            ("min_match_fraction", 0 <= self.min_match_fraction <= 1, "in [0, 1]"),
            ("imbalance_bound", 1 <= self.imbalance_bound < math.inf, ">= 1"),
            ("imbalance_slack_tokens", self.imbalance_slack_tokens >= 0, ">= 0"),
            ("max_blocks", self.max_blocks >= 0, ">= 0 (0 remembers no prefix)"),
            ("max_sessions", self.max_sessions >= 0, ">= 0 (0 remembers no session)"),
            ("stale_after_s", 0 < self.stale_after_s < math.inf, "> 0"),
        ]
        fallbacks = (RouterPolicy.power_of_two, RouterPolicy.least_tokens)
        if self.fallback not in fallbacks:
            names = " or ".join(policy.value for policy in fallbacks)
            raise UserError(f"router.fallback must be {names}, got {self.fallback.value}")
        for key, holds, rule in rules:
            if not holds:
                raise UserError(f"router.{key} must be {rule}, got {getattr(self, key)}")

    @property
    def block_bytes(self) -> int:
        """Bytes of text that stand for a block of tokens."""
        return max(1, round(self.block_tokens * self.bytes_per_token))
