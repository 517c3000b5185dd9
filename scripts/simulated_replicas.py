"""Engine replicas in simulated time: a KV cache of bounded size and continuous batching, without a model.

What matters to a router and no more: a step computes one token of each answer and, with what is left of the step's
tokens, chunks of prompts in the order of their arrival; full blocks of a prompt are found again until others push them
out, those that were not used for longest first, of one prompt the end before the beginning (as in vLLM's V1 engine).
A request is admitted when its whole prompt and answer fit, so nothing is preempted.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

BLOCK_TOKENS = 16


@dataclass(kw_only=True, slots=True, frozen=True)
class Machine:
    """A replica's size and speed."""

    kv_tokens: int = 131_072
    max_requests: int = 64
    step_tokens: int = 2048
    prefill_tokens_per_s: float = 20_000.0
    step_s: float = 0.008
    answer_token_s: float = 0.00005
    """What each answer adds to a step."""


@dataclass(slots=True, eq=False)
class Request:
    """A request and what became of it."""

    arrival_s: float
    blocks: Sequence[int]
    """Keys of its full blocks of 16 tokens; equal keys are equal prefixes."""
    prompt_tokens: int
    answer_tokens: int
    text: bytes = b""
    replica: int = -1
    cached_tokens: int = 0
    first_token_s: float = -1.0
    end_s: float = -1.0
    left: int = field(default=0, repr=False)
    """Tokens of its prompt that are to be computed."""


class SimulatedReplica:
    """One engine."""

    def __init__(self, machine: Machine) -> None:
        """Starts empty."""
        self._machine = machine
        self._room = machine.kv_tokens // BLOCK_TOKENS
        self._used: dict[int, int] = {}  # key -> requests that hold it
        self._free: OrderedDict[object, None] = OrderedDict()  # nobody holds these; the oldest goes first
        self._nameless = 0  # blocks without a key: not computed yet, or an answer's
        self._names = count()
        self._waiting: deque[Request] = deque()
        self._prefilling: deque[Request] = deque()
        self._answering: list[tuple[int, int, Request]] = []  # by the step in which they end
        self._step = 0
        self.num_running = 0
        self.waiting_tokens = 0
        self.assigned_tokens = 0
        self.computed_tokens = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self.num_running)

    def add(self, request: Request) -> None:
        """Takes a request."""
        needed = -(-(request.prompt_tokens + request.answer_tokens) // BLOCK_TOKENS)
        assert needed <= self._room, f"a request of {needed} blocks can never fit in {self._room}"
        self._waiting.append(request)
        self.waiting_tokens += request.prompt_tokens + request.answer_tokens
        self.assigned_tokens += request.prompt_tokens + request.answer_tokens

    def step(self) -> tuple[float, list[Request], list[Request]]:
        """Returns a step's seconds, the requests whose answer begins at its end, and those that end with it."""
        self._admit()
        self._step += 1
        machine = self._machine
        num_answering = len(self._answering)
        budget = max(0, machine.step_tokens - num_answering)
        begun: list[Request] = []
        computed = 0
        while self._prefilling and budget:
            request = self._prefilling[0]
            chunk = min(budget, request.left)
            request.left -= chunk
            budget -= chunk
            computed += chunk
            if request.left:
                break
            begun.append(self._prefilling.popleft())
        ended: list[Request] = []
        while self._answering and self._answering[0][0] <= self._step:
            ended.append(heapq.heappop(self._answering)[2])
        for request in begun:
            self._publish(request)
            last = self._step + request.answer_tokens - 1
            if last <= self._step:
                ended.append(request)
            else:
                heapq.heappush(self._answering, (last, next(self._names), request))
        for request in ended:
            self._release(request)
        self.waiting_tokens -= computed + num_answering + len(begun)
        self.computed_tokens += computed
        seconds = machine.step_s + computed / machine.prefill_tokens_per_s + num_answering * machine.answer_token_s
        return seconds, begun, ended

    def _admit(self) -> None:
        while self._waiting and self.num_running < self._machine.max_requests:
            request = self._waiting[0]
            hits = 0
            for key in request.blocks[: (request.prompt_tokens - 1) // BLOCK_TOKENS]:
                if key not in self._used and key not in self._free:
                    break
                hits += 1
            needed = -(-(request.prompt_tokens + request.answer_tokens) // BLOCK_TOKENS) - hits
            reused = sum(key in self._free for key in request.blocks[:hits])
            if self._nameless + len(self._used) + reused + needed > self._room:
                return
            self._waiting.popleft()
            for key in request.blocks[:hits]:
                self._free.pop(key, None)
                self._used[key] = self._used.get(key, 0) + 1
            self._nameless += needed
            self._evict()
            request.cached_tokens = hits * BLOCK_TOKENS
            request.left = request.prompt_tokens - request.cached_tokens
            self.waiting_tokens -= request.cached_tokens
            self.num_running += 1
            self._prefilling.append(request)

    def _publish(self, request: Request) -> None:
        """Its prompt is computed: others find its blocks."""
        for key in request.blocks[request.cached_tokens // BLOCK_TOKENS :]:
            # one that another request has computed meanwhile is held twice in vLLM: here once, a small kindness
            self._free.pop(key, None)
            self._used[key] = self._used.get(key, 0) + 1
            self._nameless -= 1

    def _release(self, request: Request) -> None:
        self.num_running -= 1
        nameless = -(-(request.prompt_tokens + request.answer_tokens) // BLOCK_TOKENS) - len(request.blocks)
        self._nameless -= nameless
        for _ in range(nameless):  # the answer's blocks stay in the cache like others
            self._free[("answer", next(self._names))] = None
        for key in reversed(request.blocks):
            self._used[key] -= 1
            if not self._used[key]:
                del self._used[key]
                self._free[key] = None
        self._evict()

    def _evict(self) -> None:
        while self._free and self._nameless + len(self._used) + len(self._free) > self._room:
            self._free.popitem(last=False)


class Rule(Protocol):
    """What a simulation asks where a request goes, and tells what happens."""

    def choose(self, request: Request, now_s: float) -> int:
        """Returns the replica's number."""
        ...

    def first_token(self, request: Request) -> None:
        """The answer began."""
        ...

    def ended(self, request: Request) -> None:
        """The answer ended."""
        ...


def simulate(requests: Sequence[Request], rule: Rule, replicas: Sequence[SimulatedReplica]) -> Iterator[Request]:
    """Yields each request when it has been placed, and fills in what becomes of all of them until the iterator ends."""
    steps: list[tuple[float, int, list[Request], list[Request]]] = []
    busy = [False] * len(replicas)

    def begin(number: int, now_s: float) -> None:
        busy[number] = not replicas[number].is_idle
        if busy[number]:
            seconds, begun, ended = replicas[number].step()
            heapq.heappush(steps, (now_s + seconds, number, begun, ended))

    def run_until(until_s: float) -> None:
        while steps and steps[0][0] <= until_s:
            now_s, number, begun, ended = heapq.heappop(steps)
            for request in begun:
                request.first_token_s = now_s
                rule.first_token(request)
            for request in ended:
                request.end_s = now_s
                rule.ended(request)
            begin(number, now_s)

    for request in requests:
        run_until(request.arrival_s)
        request.replica = rule.choose(request, request.arrival_s)
        replicas[request.replica].add(request)
        if not busy[request.replica]:
            begin(request.replica, request.arrival_s)
        yield request
    run_until(float("inf"))
