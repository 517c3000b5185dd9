"""The decision: which replica takes a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from conf.schema.router import RouterPolicy, RouterSpec


@dataclass(kw_only=True, slots=True)
class Capacity:
    """What a replica can hold."""

    kv_tokens: int
    """Tokens that its KV cache has room for."""
    max_requests: int = 256
    """Requests that it runs at a time (vLLM's ``max_num_seqs``); more wait in it."""


@dataclass(kw_only=True, slots=True)
class Replica:
    """A replica and the work that it was sent and has not finished."""

    id: str
    slot: int
    """Its bit in the index."""
    capacity: Capacity
    waiting_tokens: int = 0
    """Tokens to compute of prompts whose answer has not begun, and tokens expected of answers, weighed."""
    num_requests: int = 0
    num_waiting: int = 0
    """Of them, those whose answer has not begun."""
    recent_tokens: float = 0.0
    """Of prompts that it was sent of late, cached or not; what was sent before counts less and less."""


def choose(
    spec: RouterSpec,
    replicas: Sequence[Replica],
    *,
    prompt_tokens: int,
    cached_tokens: Mapping[int, int],
    turn: int,
    rng: Random,
    session_slot: int | None = None,
) -> Replica | None:
    """Returns the replica that should take the request; null where there is none.

    A replica's cost is what waits there, plus what it would have to compute of the prompt: that counts for this
    request, for the room that it takes in the cache, and for those who wait behind it, as many as wait there now. So a
    queue that grows makes a cached prefix worth more against others as busy, and an idle replica more attractive. The
    smallest cost wins among those that run fewer requests than they can (if any) and are no further ahead of the mean
    than the bound. Costs that differ by less than a block are equal: then the session's replica wins.

    A prompt that nobody holds has a future: its beginning comes again where it went. So of the two that are drawn for
    it, where they wait for as much (they are idle), the one that was sent less of late takes it.

    Source: the sum of prefill left and load is NVIDIA Dynamo's KV router; the way out under imbalance SGLang's
    cache-aware balancer and Ray's PrefixCacheAffinityRouter (docs/decisions/0008-prefix-router.md).

    Args:
        spec: Policy, weights, bound.
        replicas: Those that take requests.
        prompt_tokens: The prompt's length.
        cached_tokens: Slot -> tokens at the prompt's beginning that the replica holds; where it is missing, none.
        turn: The request's number, for ``round_robin``.
        rng: Draws the two of ``power_of_two``.
        session_slot: The replica that had the session's last request.
    """
    policy = spec.policy
    if len(replicas) < 2:
        return replicas[0] if replicas else None
    if policy is RouterPolicy.round_robin:
        return replicas[turn % len(replicas)]

    waiting = [replica.waiting_tokens for replica in replicas]
    limit = spec.imbalance_bound * sum(waiting) / len(waiting) + spec.imbalance_slack_tokens
    costs, is_match = waiting, False
    if policy is RouterPolicy.prefix and cached_tokens:
        is_match = max(cached_tokens.values()) >= spec.min_match_fraction * prompt_tokens
        get, alone, behind = cached_tokens.get, spec.prefill_weight, spec.queue_weight
        costs = [
            tokens + (prompt_tokens - get(replica.slot, 0)) * (alone + behind * replica.num_waiting)
            for replica, tokens in zip(replicas, waiting, strict=True)
        ]

    def fits(at: int) -> bool:
        return waiting[at] <= limit and replicas[at].num_requests < replicas[at].capacity.max_requests

    places = range(len(costs))
    first = min(places, key=costs.__getitem__)
    if not fits(first):
        first = min(filter(fits, places), key=costs.__getitem__, default=-1)
    # where those that are not full are too far ahead, the bound stands, and the least loaded keeps it
    if first < 0:
        first = min(places, key=waiting.__getitem__)
    elif not is_match and (spec.fallback if policy is RouterPolicy.prefix else policy) is RouterPolicy.power_of_two:
        one = rng.randrange(len(costs))
        two = (one + 1 + rng.randrange(len(costs) - 1)) % len(costs)
        drawn = filter(fits, (one, two))
        if policy is RouterPolicy.prefix:
            first = min(drawn, key=lambda at: (waiting[at], replicas[at].recent_tokens), default=first)
        else:
            first = min(drawn, key=waiting.__getitem__, default=first)
    if session_slot is not None:
        nearly = costs[first] + spec.block_tokens
        for at in places:
            if replicas[at].slot == session_slot and costs[at] <= nearly and fits(at):
                first = at
    return replicas[first]
