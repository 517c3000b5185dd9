"""The rules that scripts/bench_router.py compares: our router's policies, and what Ray Serve does."""

from __future__ import annotations

from collections import OrderedDict
from itertools import accumulate
from random import Random

from simulated_replicas import Machine, Request

from conf.schema.router import RouterSpec
from serve.router.choose import Capacity
from serve.router.router import Flight, Router


class OurRule:
    """`serve.router.Router`, which sees a prompt's text and when answers begin and end."""

    def __init__(
        self, spec: RouterSpec, num_replicas: int, machine: Machine, answer_tokens: int, seed: int, hears: bool = True
    ) -> None:
        """Places all replicas.

        `answer_tokens` is what each answer is expected to have; `hears` is whether the router is told of first tokens.
        """
        self._hears = hears
        self._now_s = 0.0
        self.router = Router(spec, rng=Random(seed), clock=lambda: self._now_s)
        self._answer_tokens = answer_tokens
        self._flights: dict[Request, Flight] = {}
        for number in range(num_replicas):
            self.router.place(str(number), Capacity(kv_tokens=machine.kv_tokens, max_requests=machine.max_requests))

    def choose(self, request: Request, now_s: float) -> int:
        """Returns the replica's number."""
        self._now_s = now_s
        choice = self.router.choose(request.text, self._answer_tokens)
        assert choice.replica_id is not None
        self._flights[request] = self.router.began(choice.replica_id, choice)
        return int(choice.replica_id)

    def first_token(self, request: Request) -> None:
        """Tells the router."""
        if self._hears:
            self.router.first_token(self._flights[request])

    def ended(self, request: Request) -> None:
        """Tells the router."""
        self.router.ended(self._flights.pop(request), request.answer_tokens)


class RayPowerOfTwo:
    """Ray Serve's default: of two replicas drawn at random the one with fewer requests."""

    def __init__(self, num_replicas: int, seed: int) -> None:
        """All replicas are idle."""
        self._rng = Random(seed)
        self._requests = [0] * num_replicas

    def choose(self, request: Request, now_s: float) -> int:
        """Returns the replica's number."""
        return self._take(self._pair())

    def first_token(self, request: Request) -> None:
        """Is of no interest here."""

    def ended(self, request: Request) -> None:
        """One request fewer."""
        self._requests[request.replica] -= 1

    def _pair(self) -> list[int]:
        return self._rng.sample(range(len(self._requests)), 2)

    def _take(self, candidates: list[int]) -> int:
        self._rng.shuffle(candidates)
        chosen = min(candidates, key=self._requests.__getitem__)
        self._requests[chosen] += 1
        return chosen


class RayPrefix(RayPowerOfTwo):
    """Ray Serve's PrefixCacheAffinityRouter, in our words, with the tree's nodes cut at the trace's blocks.

    Queues that differ by more than `imbalance`: power of two. Else those that hold the longest prefix that anybody
    holds, if it is a tenth of the prompt, or those to which the fewest characters of distinct prompts were sent; of
    them the one with the shortest queue.

    Source: ray 2.60, ray/llm/_internal/serve/routing_policies/prefix_aware/. Shipped: `imbalance` infinite, nothing is
    evicted; with eviction: every 10 s a replica with more than 400,000 characters is cut to 360,000.
    """

    def __init__(
        self, num_replicas: int, seed: int, imbalance: float = float("inf"), is_evicting: bool = False
    ) -> None:
        """Starts with an empty tree."""
        super().__init__(num_replicas, seed)
        self._imbalance = imbalance
        self._is_evicting = is_evicting
        self._held: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(num_replicas)]
        self._chars = [0] * num_replicas
        self._evicted_s = 0.0

    def choose(self, request: Request, now_s: float) -> int:
        """Returns the replica's number."""
        if self._is_evicting and now_s - self._evicted_s >= 10:
            self._evicted_s = now_s
            self._evict()
        if max(self._requests) - min(self._requests) > self._imbalance:
            chosen = self._take(self._pair())
        else:
            chosen = self._take(self._longest(request))
        held = self._held[chosen]
        chars = len(request.text) / max(1, len(request.blocks))
        ends = list(accumulate([chars] * len(request.blocks), initial=0.0))
        for at in reversed(range(len(request.blocks))):
            key = request.blocks[at]
            if key in held:
                held.move_to_end(key)
            else:
                held[key] = int(ends[at + 1]) - int(ends[at])
                self._chars[chosen] += held[key]
        return chosen

    def _longest(self, request: Request) -> list[int]:
        matched, tenants = 0, list(range(len(self._held)))
        for key in request.blocks:
            holders = [number for number, held in enumerate(self._held) if key in held]
            if not holders:
                break
            matched, tenants = matched + 1, holders
        if matched < 0.1 * max(1, len(request.blocks)):
            fewest = min(self._chars)
            return [number for number, chars in enumerate(self._chars) if chars == fewest]
        return tenants

    def _evict(self) -> None:
        for number, held in enumerate(self._held):
            if self._chars[number] > 400_000:
                while self._chars[number] > 360_000:
                    self._chars[number] -= held.popitem(last=False)[1]
