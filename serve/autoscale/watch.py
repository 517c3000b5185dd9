"""From what replicas tell of themselves to what a policy sees. Pure: time is an argument."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.arrivals import Arrivals
from serve.autoscale.mean import ANSWER_TOKENS, PRIOR, Mean
from serve.autoscale.observation import Capacity, Observation


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one replica tells of itself. Numbers only: Ray Serve carries nothing else."""

    arrived: float = 0.0
    """Requests that came to the engine, since the replica began."""
    prompt_tokens: float = 0.0
    """Of those requests, expected where they have not ended."""
    answers: float = 0.0
    """Requests that ended and said what they used, since the replica began."""
    answer_tokens: float = 0.0
    """Of those answers."""
    in_flight: float = 0.0
    """Requests that have not ended."""
    waiting: float = 0.0
    """Requests among them whose answer has not begun."""
    waiting_tokens: float = 0.0
    """Of their prompts."""
    ttft_s: float = -1.0
    """The percentile of ``autoscale.slo_percentile`` in the long window; negative where no stream began."""
    tpot_s: float = -1.0
    """As ``ttft_s``, of streams that ended."""
    start_s: float = 0.0
    """What it took to start; 0 is not known."""
    prefill_tokens_per_s: float = 0.0
    """As it was measured; 0 is not known."""
    decode_tokens_per_s: float = 0.0
    """As it was measured; 0 is not known."""


class Told(NamedTuple):
    """A replica's last report."""

    age_s: float
    report: Report


def read_report(values: Mapping[str, float]) -> Report:
    """Returns a report as it came; names that are not known are left out."""
    return Report(**{each.name: float(values[each.name]) for each in fields(Report) if each.name in values})


class Watch:
    """Adds up what replicas told, those that have gone included."""

    def __init__(self, spec: AutoscaleSpec, max_num_seqs: int, now_s: float) -> None:
        """Starts with nothing seen.

        Args:
            spec: windows, and what replicas are said to do.
            max_num_seqs: requests that a replica computes at a time.
            now_s: a clock's seconds.
        """
        self._spec, self._max_num_seqs = spec, max_num_seqs
        self._arrivals, self._looked_s = Arrivals(spec, now_s), now_s
        self._last: dict[str, Report] = {}
        self._older: frozenset[str] | None = None
        """Replicas that were there before this watch: what they counted until then is no news."""
        self._requests = self._prompt_tokens = 0.0
        self._prompt, self._answer = Mean(0.0), Mean(ANSWER_TOKENS, PRIOR)
        self._start_s = spec.start_s
        self._capacity = Capacity(
            prefill_tokens_per_s=spec.prefill_tokens_per_s or math.inf,
            decode_tokens_per_s=spec.decode_tokens_per_s or math.inf,
            max_num_seqs=max_num_seqs,
        )

    def see(
        self, now_s: float, *, target: int, running: Collection[str], told: Mapping[str, Told], queued: float
    ) -> Observation:
        """Returns the fleet at this moment; time does not go back from one to the next.

        Args:
            now_s: a clock's seconds.
            target: replicas that were asked for last.
            running: names of those that take requests.
            told: what they said last; new ones have said nothing yet.
            queued: requests in front of them.
        """
        if self._older is None:
            self._older = frozenset(running)
        reports = {name: told[name].report for name in running if name in told}
        for name, report in reports.items():
            self._add(self._last.get(name, report if name in self._older else Report()), report)
        self._last = reports
        self._learn(list(reports.values()))
        spec, answer = self._spec, self._answer.value
        # what was counted is as old as the reports: spans are between the moments at which replicas looked
        age_s = _age_s(running, told)
        self._looked_s = max(self._looked_s, now_s - age_s if math.isfinite(age_s) else now_s)
        self._arrivals.note(self._looked_s, self._requests + queued, self._prompt_tokens + queued * self._prompt.value)
        short = self._arrivals.rates(spec.short_window_s, answer)
        long = self._arrivals.rates(spec.long_window_s, answer)
        least = self._arrivals.least_rates(answer)
        waiting = sum(report.waiting for report in reports.values())
        answering = max(0.0, sum(report.in_flight for report in reports.values()) - waiting)
        waiting_tokens = sum(report.waiting_tokens for report in reports.values())
        return Observation(
            now_s=now_s,
            metrics_age_s=age_s,
            target=target,
            running=len(running),
            starting=max(0, target - len(running)),
            draining=0,  # Ray Serve tells a policy nothing of them, and they help nobody who comes now
            running_requests=round(answering),
            waiting_requests=math.ceil(waiting + queued),
            waiting_prompt_tokens=waiting_tokens + queued * self._prompt.value,
            outstanding_answer_tokens=answer * (waiting + queued + answering / 2),
            short_prompt_tokens_per_s=short[0],
            short_answer_tokens_per_s=short[1],
            long_prompt_tokens_per_s=long[0],
            long_answer_tokens_per_s=long[1],
            least_prompt_tokens_per_s=least[0],
            least_answer_tokens_per_s=least[1],
            ttft_s=_worst([report.ttft_s for report in reports.values()]),
            tpot_s=_worst([report.tpot_s for report in reports.values()]),
            start_s=self._start_s,
            capacity=self._capacity,
        )

    def _add(self, before: Report, now: Report) -> None:
        requests, prompt_tokens = now.arrived - before.arrived, now.prompt_tokens - before.prompt_tokens
        self._requests += requests
        self._prompt_tokens += prompt_tokens
        self._prompt.add(prompt_tokens, requests)
        self._answer.add(now.answer_tokens - before.answer_tokens, now.answers - before.answers)

    def _learn(self, reports: list[Report]) -> None:
        """Takes what replicas measured; it is kept while none runs."""
        spec = self._spec
        self._start_s = _mean([report.start_s for report in reports]) or self._start_s
        prefill = spec.prefill_tokens_per_s or _mean([report.prefill_tokens_per_s for report in reports])
        decode = spec.decode_tokens_per_s or _mean([report.decode_tokens_per_s for report in reports])
        self._capacity = Capacity(
            prefill_tokens_per_s=prefill or self._capacity.prefill_tokens_per_s,
            decode_tokens_per_s=decode or self._capacity.decode_tokens_per_s,
            max_num_seqs=self._max_num_seqs,
        )


def _mean(values: list[float]) -> float:
    """Of those that are known; 0 where none is."""
    known = [value for value in values if value > 0]
    return sum(known) / len(known) if known else 0.0


def _worst(values: list[float]) -> float | None:
    """The worst replica's: percentiles of parts do not add up to one of the whole."""
    return max((value for value in values if value >= 0), default=None)


def _age_s(running: Collection[str], told: Mapping[str, Told]) -> float:
    """The median: one replica that says nothing holds nobody up, half of them do."""
    ages = sorted(told[name].age_s if name in told else math.inf for name in running)
    return ages[(len(ages) - 1) // 2] if ages else 0.0
