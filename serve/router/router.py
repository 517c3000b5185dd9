"""The router's state: replicas, their load and prefixes, the requests on their way."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from conf.schema.router import RouterPolicy, RouterSpec
from serve.router.blocks import block_keys
from serve.router.choose import Capacity, Replica, choose
from serve.router.index import PrefixIndex

RECENT_S = 60.0
"""What was sent to a replica counts half after this time (`Replica.recent_tokens`)."""
FADE_S = 1.0


@dataclass(slots=True, eq=False)
class Choice:
    """What `Router.choose` found for a request."""

    replica_id: str | None
    """Null if no replica takes requests."""
    prompt_tokens: int
    answer_tokens: int
    cached_tokens: dict[int, int]
    session: str | None
    keys: list[int]
    """Of the blocks that were looked up."""
    rest: Iterator[int]
    """Keys of the blocks after them, hashed once the request has begun: the decision does not wait for them."""


@dataclass(slots=True, eq=False)
class Flight:
    """A request on its way: what `Router.began` counted and `first_token` and `ended` take back."""

    replica: Replica
    prefill_tokens: int
    """Of `Replica.waiting_tokens`, until the answer begins."""
    decode_tokens: int
    """Of `Replica.waiting_tokens`, until the answer ends."""
    answer_tokens: int
    began_s: float
    is_ended: bool = False


class Router:
    """Chooses replicas for requests and keeps count of what they are doing. Not for several threads.

    Nothing here waits or calls out: whoever adapts it to Ray tells it what happens. Several routers may serve the same
    replicas, each with what it saw itself.
    """

    def __init__(self, spec: RouterSpec, *, rng: Random | None = None, clock: Callable[[], float] = time.monotonic):
        """Starts without replicas.

        Args:
            spec: Policy, weights, bounds.
            rng: For reproducible draws.
            clock: Seconds, never going back.
        """
        self._spec = spec
        self._rng = rng or Random()
        self._clock = clock
        self._index = PrefixIndex(spec.max_blocks)
        self._replicas: dict[str, Replica] = {}
        self._flights: OrderedDict[Flight, None] = OrderedDict()
        self._sessions: OrderedDict[str, Replica] = OrderedDict()
        self._open: list[Replica] = []
        self._open_mask = 0
        self._turn = 0
        self._faded_s = clock()

    @property
    def replicas(self) -> list[Replica]:
        """The replicas with their load."""
        return list(self._replicas.values())

    @property
    def num_blocks(self) -> int:
        """Prefix blocks that are remembered."""
        return self._index.num_blocks

    def place(self, replica_id: str, capacity: Capacity) -> None:
        """A replica is there, with an empty cache; one that was known is forgotten first."""
        self.drop(replica_id)
        taken = {replica.slot for replica in self._replicas.values()}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        self._replicas[replica_id] = Replica(id=replica_id, slot=slot, capacity=capacity)
        self._index.place(slot, capacity.kv_tokens // self._spec.block_tokens)
        self.set_open(replica_id, True)

    def drop(self, replica_id: str) -> None:
        """A replica is gone: its cache and load with it. One that is not known is no mistake."""
        self.set_open(replica_id, False)
        replica = self._replicas.pop(replica_id, None)
        if replica is not None:
            self._index.drop(replica.slot)

    def set_open(self, replica_id: str, is_open: bool) -> None:
        """Whether a replica takes new requests: not while it drains or is unhealthy. It keeps its cache and load."""
        replica = self._replicas.get(replica_id)
        if replica is not None and is_open != (replica in self._open):
            self._open = [*self._open, replica] if is_open else [other for other in self._open if other is not replica]
            self._open_mask ^= 1 << replica.slot

    def choose(
        self, prompt: bytes | Sequence[int], expected_answer_tokens: int = 0, session: str | None = None
    ) -> Choice:
        """Finds the replica for a request; changes nothing but the turn and the draws.

        Args:
            prompt: Its text in UTF-8, or its token ids.
            expected_answer_tokens: What the answer will have, as far as is known.
            session: Names a conversation, to break ties in favour of the replica that had it.
        """
        spec = self._spec
        self._end_stale()
        self._turn += 1
        rest: Iterator[int] = iter(())
        keys: list[int] = []
        cached: dict[int, int] = {}
        is_text = isinstance(prompt, bytes)
        if spec.policy is RouterPolicy.prefix and spec.max_blocks:
            rest = block_keys(prompt, spec.block_bytes if is_text else spec.block_tokens)
            cached, keys = self._index.match(rest, self._open_mask, spec.block_tokens)
        prompt_tokens = max(1, round(len(prompt) / spec.bytes_per_token) if is_text else len(prompt))
        last = self._sessions.get(session) if session is not None else None
        chosen = choose(
            spec,
            self._open,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached,
            turn=self._turn,
            rng=self._rng,
            session_slot=last.slot if last is not None and self._replicas.get(last.id) is last else None,
        )
        return Choice(chosen.id if chosen else None, prompt_tokens, expected_answer_tokens, cached, session, keys, rest)

    def began(self, replica_id: str, choice: Choice) -> Flight:
        """A request was sent to a replica, which need not be the one that was chosen.

        Raises:
            KeyError: The replica is not known.
        """
        replica = self._replicas[replica_id]
        prefill = max(1, choice.prompt_tokens - choice.cached_tokens.get(replica.slot, 0))
        decode = round(self._spec.decode_weight * choice.answer_tokens)
        flight = Flight(replica, prefill, decode, choice.answer_tokens, self._clock())
        self._fade()
        replica.recent_tokens += choice.prompt_tokens
        replica.waiting_tokens += prefill + decode
        replica.num_requests += 1
        replica.num_waiting += 1
        self._flights[flight] = None
        choice.keys.extend(choice.rest)
        self._index.hold(replica.slot, choice.keys)
        if choice.session is not None and self._spec.max_sessions:
            self._sessions[choice.session] = replica
            self._sessions.move_to_end(choice.session)
            if len(self._sessions) > self._spec.max_sessions:
                self._sessions.popitem(last=False)
        return flight

    def first_token(self, flight: Flight) -> None:
        """The answer has begun: the prompt is computed. To say it twice, or never, is no mistake."""
        flight.replica.waiting_tokens -= flight.prefill_tokens
        flight.replica.num_waiting -= bool(flight.prefill_tokens)
        flight.prefill_tokens = 0

    def ended(self, flight: Flight, answer_tokens: int | None = None) -> None:
        """The request is over, whatever its outcome. To say it twice is no mistake.

        Args:
            flight: The request.
            answer_tokens: What the answer had, if that is known; else what was expected.
        """
        if flight.is_ended:
            return
        flight.is_ended = True
        self._flights.pop(flight, None)
        self.first_token(flight)
        replica = flight.replica
        replica.waiting_tokens -= flight.decode_tokens
        replica.num_requests -= 1
        if self._replicas.get(replica.id) is replica:
            written = flight.answer_tokens if answer_tokens is None else answer_tokens
            self._index.fill(replica.slot, written // self._spec.block_tokens)

    def _fade(self) -> None:
        """Makes what was sent count less, once a second."""
        passed_s = self._clock() - self._faded_s
        if passed_s >= FADE_S:
            self._faded_s += passed_s
            for replica in self._replicas.values():
                replica.recent_tokens *= 0.5 ** (passed_s / RECENT_S)

    def _end_stale(self) -> None:
        """Ends requests of which nothing was heard: their replica would seem loaded for ever."""
        if not self._flights:
            return
        before = self._clock() - self._spec.stale_after_s
        while self._flights:
            oldest = next(iter(self._flights))
            if oldest.began_s > before:
                return
            self.ended(oldest)
