"""One replica's engine in simulated time, exact to the step.

Continuous batching: a step computes a token of each answer and, with what is left of its tokens, chunks of prompts in
the order of their arrival. A request is admitted when its whole prompt and answer fit, so nothing is preempted. Steps
that compute no prompt are alike until an answer ends: such a stretch is one event, cut at the end of a step when a
request comes. What is left out: a prefix cache, and that attention reads more as sequences grow.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import NamedTuple

from conf.schema.simulate import ReplicaSpec
from serve.autoscale.observation import Capacity

IDLE = math.inf


class Ended(NamedTuple):
    """What an event brought: numbers of requests."""

    begun: list[int]
    """Their answer's first token is there."""
    ended: list[int]


class SimulatedReplica:
    """An engine that is told of requests and of time, and says when it has next something to tell."""

    __slots__ = (
        "_busy_s",
        "_ends",
        "_is_prefill",
        "_kv_left",
        "_prefilling",
        "_prompts_left",
        "_spec",
        "_step",
        "_step_s",
        "_steps",
        "_stretch_s",
        "_waiting",
        "next_s",
        "running",
    )

    def __init__(self, spec: ReplicaSpec) -> None:
        """Starts empty."""
        self._spec = spec
        self._waiting: deque[tuple[int, int, int]] = deque()  # number, prompt, answer
        self._prefilling: deque[list[int]] = deque()  # number, left of the prompt, prompt, answer
        self._ends: list[tuple[int, int, int]] = []  # the step that ends an answer, number, tokens held
        self._kv_left = spec.kv_tokens
        self._step = 0
        self._is_prefill = False
        self._stretch_s = 0.0  # when the stretch of steps that runs began
        self._step_s = 0.0
        self._steps = 0
        self._prompts_left: list[list[int]] = []  # those that the step that runs completes
        self._busy_s = 0.0
        self.running = 0
        """Requests that are computed."""
        self.next_s = IDLE
        """When it has something to tell."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.running or self._waiting)

    @property
    def busy_s(self) -> float:
        """Seconds in which it computed."""
        return self._busy_s

    def add(self, number: int, prompt: int, answer: int, now_s: float) -> None:
        """Takes a request; ``next_s`` may be sooner then.

        Args:
            number: its name.
            prompt: tokens.
            answer: tokens, 1 at least. Prompt and answer together fit into the KV cache.
            now_s: the time.
        """
        self._waiting.append((number, prompt, answer))
        if self.next_s == IDLE:
            self._begin(now_s)
        elif not self._is_prefill and self._steps > 1 and self._admits():
            # the step that runs ends first
            done = max(1, math.ceil((now_s - self._stretch_s) / self._step_s - 1e-9))
            if done < self._steps:
                self._steps = done
                self.next_s = self._stretch_s + done * self._step_s

    def advance(self) -> Ended:
        """Goes on to ``next_s``, and says what came of it."""
        now_s = self.next_s
        self._busy_s += now_s - self._stretch_s
        self._step += self._steps
        begun: list[int] = []
        ended: list[int] = []
        for number, _, prompt, answer in self._prompts_left:
            begun.append(number)
            if answer <= 1:
                ended.append(number)
                self._kv_left += prompt + answer
            else:
                heapq.heappush(self._ends, (self._step + answer - 1, number, prompt + answer))
        self._prompts_left = []
        ends = self._ends
        while ends and ends[0][0] <= self._step:
            _, number, held = heapq.heappop(ends)
            ended.append(number)
            self._kv_left += held
        self.running -= len(ended)
        self._begin(now_s)
        return Ended(begun, ended)

    def _admits(self) -> bool:
        _, prompt, answer = self._waiting[0]
        return self.running < self._spec.max_num_seqs and prompt + answer <= self._kv_left

    def _begin(self, now_s: float) -> None:
        """Begins a step with prompts, or a stretch of steps without."""
        spec, waiting, prefilling = self._spec, self._waiting, self._prefilling
        while waiting and self._admits():
            number, prompt, answer = waiting.popleft()
            self._kv_left -= prompt + answer
            self.running += 1
            prefilling.append([number, prompt, prompt, answer])
        answering = len(self._ends)
        self._stretch_s = now_s
        self._step_s = spec.step_s + answering * spec.answer_token_s
        self._is_prefill = bool(prefilling)
        if prefilling:
            budget = room = spec.step_tokens - answering
            while prefilling and budget:
                first = prefilling[0]
                chunk = min(budget, first[1])
                first[1] -= chunk
                budget -= chunk
                if first[1]:
                    break
                self._prompts_left.append(prefilling.popleft())
            self._step_s += (room - budget) / spec.prefill_tokens_per_s
            self._steps = 1
        elif answering:
            self._steps = self._ends[0][0] - self._step
        else:
            self._steps = 0
            self.next_s = IDLE
            return
        self.next_s = now_s + self._steps * self._step_s


def capacity_of(spec: ReplicaSpec, tpot_s: float, mean_tokens: float) -> Capacity:
    """Returns what a replica does at most: prompts alone, and answers alone that keep a target.

    Args:
        spec: the replica.
        tpot_s: the time of a token that is to be kept.
        mean_tokens: of a request, prompt and answer; bounds how many the KV cache holds.
    """
    seqs = min(spec.max_num_seqs, max(1, int(spec.kv_tokens / max(1.0, mean_tokens))))
    if spec.answer_token_s:
        seqs = max(1, min(seqs, int((tpot_s - spec.step_s) / spec.answer_token_s)))
    return Capacity(
        prefill_tokens_per_s=spec.step_tokens / (spec.step_s + spec.step_tokens / spec.prefill_tokens_per_s),
        decode_tokens_per_s=seqs / (spec.step_s + seqs * spec.answer_token_s),
        max_num_seqs=seqs,
    )
