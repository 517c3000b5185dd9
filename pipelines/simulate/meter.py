"""What a service would have measured by now: rates over windows, percentiles, what waits."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.arrivals import Arrivals
from serve.autoscale.mean import ANSWER_TOKENS, PRIOR, Mean
from serve.autoscale.observation import Capacity, Observation


@dataclass(frozen=True, slots=True)
class _Look:
    """What had been counted at a moment."""

    at_s: float
    requests: int
    prompt_tokens: int
    begun: int
    begun_tokens: int
    ended: int
    mean_answer: float
    ttft_s: float | None
    tpot_s: float | None


class Meter:
    """Counts arrivals, first tokens and ends."""

    def __init__(self, spec: AutoscaleSpec) -> None:
        """Starts at time 0, and knows of no answer."""
        self._spec = spec
        self._answer = Mean(ANSWER_TOKENS, PRIOR)
        self._requests = self._prompt_tokens = 0
        self._begun = self._begun_tokens = self._ended = 0
        self._arrivals = Arrivals(spec)
        self._ttft = (array("d"), array("d"))  # when, value
        self._tpot = (array("d"), array("d"))
        self.look(0.0)

    @property
    def mean_answer(self) -> float:
        """The expected length of an answer, in tokens."""
        return self._answer.value

    def arrived(self, prompt: int) -> None:
        """A request came."""
        self._requests += 1
        self._prompt_tokens += prompt

    def began(self, now: float, ttft: float, prompt: int) -> None:
        """An answer's first token is there."""
        self._begun += 1
        self._begun_tokens += prompt
        self._ttft[0].append(now)
        self._ttft[1].append(ttft)

    def ended(self, now: float, answer: int, tpot: float | None) -> None:
        """An answer is complete."""
        self._ended += 1
        self._answer.add(answer, 1)
        if tpot is not None:
            self._tpot[0].append(now)
            self._tpot[1].append(tpot)

    def look(self, now: float) -> None:
        """Replicas tell what they have counted: it is what there is to see from now on."""
        self._seen = _Look(
            now,
            self._requests,
            self._prompt_tokens,
            self._begun,
            self._begun_tokens,
            self._ended,
            self.mean_answer,
            self._percentile(self._ttft, now),
            self._percentile(self._tpot, now),
        )

    def observe(
        self, now: float, *, target: int, running: int, starting: int, draining: int, start_s: float, capacity: Capacity
    ) -> Observation:
        """Returns what there is to see at a decision; time does not go back from one to the next."""
        spec, seen = self._spec, self._seen
        self._arrivals.note(seen.at_s, seen.requests, seen.prompt_tokens)
        short = self._arrivals.rates(spec.short_window_s, seen.mean_answer)
        long = self._arrivals.rates(spec.long_window_s, seen.mean_answer)
        least = self._arrivals.least_rates(seen.mean_answer)
        waiting = seen.requests - seen.begun
        answering = seen.begun - seen.ended
        return Observation(
            now_s=now,
            metrics_age_s=now - seen.at_s,
            target=target,
            running=running,
            starting=starting,
            draining=draining,
            running_requests=answering,
            waiting_requests=waiting,
            waiting_prompt_tokens=seen.prompt_tokens - seen.begun_tokens,
            outstanding_answer_tokens=seen.mean_answer * (waiting + answering / 2),
            short_prompt_tokens_per_s=short[0],
            short_answer_tokens_per_s=short[1],
            long_prompt_tokens_per_s=long[0],
            long_answer_tokens_per_s=long[1],
            least_prompt_tokens_per_s=least[0],
            least_answer_tokens_per_s=least[1],
            ttft_s=seen.ttft_s,
            tpot_s=seen.tpot_s,
            start_s=start_s,
            capacity=capacity,
        )

    def _percentile(self, series: tuple[array[float], array[float]], now: float) -> float | None:
        times, values = series
        begin = bisect_left(times, now - self._spec.long_window_s)
        count = len(times) - begin
        if not count:
            return None
        place = min(count - 1, int(count * self._spec.slo_percentile / 100))
        return float(np.partition(np.array(values[begin:]), place)[place])
