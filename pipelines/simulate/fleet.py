"""A fleet in simulated time: arrivals, a router by least outstanding tokens, replicas that start, drain and stop.

Events are few for each request: its arrival, the step that ends its prompt, the one that ends its answer. Requests that
no replica has room for wait in one queue, in the order of arrival; none is refused.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from conf.schema.autoscale import AutoscaleSpec
from conf.schema.simulate import ReplicaSpec
from pipelines.simulate.meter import Meter
from pipelines.simulate.replica import IDLE, SimulatedReplica, capacity_of
from pipelines.simulate.trace import Trace
from serve.autoscale.observation import Decision, Observation

Decide = Callable[[Observation], Decision]
"""A policy with its memory."""
_TICK, _READY, _REPORT = -1, -2, -3
FULL = math.inf


@dataclass(kw_only=True, slots=True)
class Run:
    """What became of a trace."""

    first_s: np.ndarray
    """When each answer began; NaN where it did not."""
    end_s: np.ndarray
    seconds: float
    """From the first arrival to the last answer's end."""
    replica_s: float
    """Seconds of replicas, start-up and draining included."""
    busy_s: float
    """Seconds in which replicas computed."""
    ticks: list[tuple[float, int, int, int, int, int]] = field(default_factory=list)
    """(time, target, running, starting, draining, waiting requests) at each decision."""
    reasons: list[tuple[float, int, str]] = field(default_factory=list)
    """(time, target, reason) of each change."""


class Fleet:
    """Replicas, and the requests in front of them."""

    def __init__(
        self, trace: Trace, spec: ReplicaSpec, scale: AutoscaleSpec, initial: int, report_s: float = 0.0
    ) -> None:
        """Starts with replicas that are ready.

        Args:
            trace: its longest request fits into a replica's KV cache.
            spec: a replica.
            scale: the interval and windows of observations; bounds are the policy's own affair.
            initial: replicas.
            report_s: seconds from one report of all replicas to the next; 0 has a decision know what is.
        """
        self._spec, self._scale, self._report_s = spec, scale, report_s
        self._arrival: list[float] = trace.arrival_s.tolist()
        self._prompt: list[int] = trace.prompt.tolist()
        self._answer: list[int] = trace.answer.tolist()
        self._first = [math.nan] * len(trace)
        self._end = [math.nan] * len(trace)
        self._owner = [-1] * len(trace)
        self._cost = [0.0] * len(trace)  # what it counts in its replica's load now
        self._meter = Meter(scale)
        mean = float((trace.prompt + trace.answer).mean())
        self._capacity = capacity_of(spec, scale.tpot_target_s, mean)
        self._replicas: list[SimulatedReplica | None] = []
        self._born: list[float] = []
        self._load = np.full(64, FULL)  # outstanding tokens; infinite where nothing may come
        self._ongoing: list[int] = []
        self._ready: set[int] = set()
        self._starting: list[int] = []  # in the order of their start
        self._draining: set[int] = set()
        self._free: list[int] = []
        self._queue: deque[int] = deque()
        self._events: list[tuple[float, int]] = []  # of a replica, its number; or _TICK, _READY, _REPORT
        self._starts: deque[tuple[float, int]] = deque()  # when, number
        self._target = initial
        self._replica_s = self._busy_s = 0.0
        for _ in range(initial):
            self._make_ready(self._start(0.0), 0.0)

    def run(self, decide: Decide) -> Run:
        """Replays the trace until its last answer has ended."""
        arrivals, events = self._arrival, self._events
        count, at, open_requests = len(arrivals), 0, len(arrivals)
        ticks: list[tuple[float, int, int, int, int, int]] = []
        reasons: list[tuple[float, int, str]] = []
        heapq.heappush(events, (0.0, _TICK))
        if self._report_s:
            # a decision that falls on a whole number of them knows what is three quarters old: in a service it is that
            # on average, for a report takes a moment to be made and to arrive
            heapq.heappush(events, (self._report_s / 4, _REPORT))
        now = 0.0
        while open_requests:
            if at < count and arrivals[at] <= events[0][0]:
                now = arrivals[at]
                self._meter.arrived(self._prompt[at])
                self._queue.append(at)
                if self._ready:
                    self._dispatch(now)
                at += 1
                continue
            now, number = heapq.heappop(events)
            if number >= 0:
                replica = self._replicas[number]
                if replica is not None and replica.next_s == now:
                    open_requests -= self._advance(number, replica, now)
            elif number == _REPORT:
                self._meter.look(now)
                heapq.heappush(events, (now + self._report_s, _REPORT))
            elif number == _TICK:
                if not self._report_s:
                    self._meter.look(now)
                seen = self._observe(now)
                decision = decide(seen)
                if decision.target != self._target:
                    reasons.append((now, decision.target, decision.reason))
                self._resize(decision.target, now)
                ticks.append(
                    (
                        now,
                        self._target,
                        len(self._ready),
                        len(self._starting),
                        len(self._draining),
                        seen.waiting_requests,
                    )
                )
                heapq.heappush(events, (now + self._scale.interval_s, _TICK))
            else:
                self._became_ready(now)
        for number, replica in enumerate(self._replicas):
            if replica is not None:
                self._stop(number, replica, now)
        return Run(
            first_s=np.array(self._first),
            end_s=np.array(self._end),
            seconds=now,
            replica_s=self._replica_s,
            busy_s=self._busy_s,
            ticks=ticks,
            reasons=reasons,
        )

    def _dispatch(self, now: float) -> None:
        """Sends the requests of the queue to the least loaded replicas, while there is room."""
        queue, load, most = self._queue, self._load, self._spec.ongoing_requests
        expected = self._meter.mean_answer
        while queue:
            number = int(load.argmin())
            if self._ongoing[number] >= most or load[number] == FULL:
                number = self._roomy()
                if number < 0:
                    return
            at = queue.popleft()
            replica = self._replicas[number]
            assert replica is not None
            cost = self._prompt[at] + expected
            load[number] += cost
            self._cost[at] = cost
            self._owner[at] = number
            self._ongoing[number] += 1
            before = replica.next_s
            replica.add(at, self._prompt[at], self._answer[at], now)
            if replica.next_s != before:
                heapq.heappush(self._events, (replica.next_s, number))

    def _roomy(self) -> int:
        """The least loaded replica that has room, where the least loaded of all has none; -1 where none has."""
        load, most = self._load, self._spec.ongoing_requests
        found = [number for number in self._ready if self._ongoing[number] < most]
        return min(found, key=lambda number: load[number], default=-1)

    def _advance(self, number: int, replica: SimulatedReplica, now: float) -> int:
        """Takes note of what a replica did; returns how many requests ended."""
        begun, ended = replica.advance()
        load, cost = self._load, self._cost
        for at in begun:
            self._first[at] = now
            self._meter.began(now, now - self._arrival[at], self._prompt[at])
            cost[at] -= self._prompt[at]
            load[number] -= self._prompt[at]
        for at in ended:
            self._end[at] = now
            answer = self._answer[at]
            tpot = (now - self._first[at]) / (answer - 1) if answer > 1 else None
            self._meter.ended(now, answer, tpot)
            load[number] -= cost[at]
        if ended:
            self._ongoing[number] -= len(ended)
            if number in self._draining:
                if replica.is_idle:
                    self._draining.discard(number)
                    self._stop(number, replica, now)
                    return len(ended)
            elif self._queue:
                self._dispatch(now)
        if replica.next_s != IDLE:
            heapq.heappush(self._events, (replica.next_s, number))
        return len(ended)

    def _observe(self, now: float) -> Observation:
        return self._meter.observe(
            now,
            target=self._target,
            running=len(self._ready),
            starting=len(self._starting),
            draining=len(self._draining),
            start_s=self._spec.start_s,
            capacity=self._capacity,
        )

    def _resize(self, target: int, now: float) -> None:
        """Starts replicas, or takes some away: first those that start, the last one first, then the least loaded."""
        self._target = target
        for _ in range(target - len(self._ready) - len(self._starting)):
            number = self._start(now)
            self._starting.append(number)
            self._starts.append((now + self._spec.start_s, number))
            heapq.heappush(self._events, (now + self._spec.start_s, _READY))
        surplus = len(self._ready) + len(self._starting) - target
        while surplus > 0 and self._starting:
            number = self._starting.pop()
            replica = self._replicas[number]
            assert replica is not None
            self._stop(number, replica, now)
            surplus -= 1
        if surplus <= 0:
            return
        for number in sorted(self._ready, key=lambda number: self._load[number])[:surplus]:
            self._ready.discard(number)
            self._load[number] = FULL
            replica = self._replicas[number]
            assert replica is not None
            if replica.is_idle:
                self._stop(number, replica, now)
            else:
                self._draining.add(number)

    def _start(self, now: float) -> int:
        if self._free:
            number = heapq.heappop(self._free)
        else:
            number = len(self._replicas)
            self._replicas.append(None)
            self._born.append(0.0)
            self._ongoing.append(0)
            if number >= len(self._load):
                self._load = np.concatenate([self._load, np.full(len(self._load), FULL)])
        self._replicas[number] = SimulatedReplica(self._spec)
        self._born[number] = now
        self._ongoing[number] = 0
        return number

    def _make_ready(self, number: int, now: float) -> None:
        self._ready.add(number)
        self._load[number] = 0.0
        if self._queue:
            self._dispatch(now)

    def _became_ready(self, now: float) -> None:
        ready_s, number = self._starts.popleft()
        # a start that was taken back is no longer in the list; its number may have been given again, later
        if number in self._starting and self._born[number] + self._spec.start_s == ready_s:
            self._starting.remove(number)
            self._make_ready(number, now)

    def _stop(self, number: int, replica: SimulatedReplica, now: float) -> None:
        self._replica_s += now - self._born[number]
        self._busy_s += replica.busy_s
        self._replicas[number] = None
        self._load[number] = FULL
        heapq.heappush(self._free, number)
