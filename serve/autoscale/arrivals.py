"""Arrivals over windows of time: how fast requests and their tokens come."""

from __future__ import annotations

import math
from collections import deque

from conf.schema.autoscale import AutoscaleSpec

SURE = 2.0
"""Standard deviations of a number of arrivals by chance: once in 44 times as many come at a rate that is smaller."""
MOMENT_FRACTION = 0.25
"""Of the short window: over less, requests that one client sends at once would be a rate."""


class Arrivals:
    """Remembers how much had come at each decision, as far back as the long window."""

    def __init__(self, spec: AutoscaleSpec, now_s: float = 0.0) -> None:
        """Starts with nothing that has come.

        Args:
            spec: the windows.
            now_s: when it starts.
        """
        self._spec = spec
        self._counts: deque[tuple[float, float, float]] = deque([(now_s, 0.0, 0.0)])

    def note(self, now_s: float, requests: float, prompt_tokens: float) -> None:
        """Takes what has come in all by now; time does not go back."""
        counts = self._counts
        counts.append((now_s, requests, prompt_tokens))
        while len(counts) > 2 and counts[1][0] <= now_s - self._spec.long_window_s:
            counts.popleft()

    def rates(self, window_s: float, answer_tokens: float) -> tuple[float, float]:
        """Returns tokens/s of prompts, and of answers, since the last decision before the window.

        Args:
            window_s: up to the last `note`.
            answer_tokens: expected of a request.
        """
        now_s, requests, prompt_tokens = self._counts[-1]
        before = self._counts[0]
        for count in reversed(self._counts):
            before = count
            if count[0] <= now_s - window_s:
                break
        # what came before the first decision is not known and counts as nothing: a few requests at once are no rate
        span_s = max(now_s - before[0], window_s)
        # fewer than before: some that had waited have left
        return max(0.0, prompt_tokens - before[2]) / span_s, max(0.0, requests - before[1]) * answer_tokens / span_s

    def least_rates(self, answer_tokens: float) -> tuple[float, float]:
        """Returns the tokens/s that come at least, as far as chance explains: of prompts, and of answers.

        Of the spans from a decision in the short window until now it is the one that says most: where many requests
        come, a quarter of the window is enough to know a rise; where few do, it takes the window.

        Args:
            answer_tokens: expected of a request.
        """
        now_s, requests, prompt_tokens = self._counts[-1]
        least, found = 0.0, (0.0, 0.0)
        for before_s, had, had_tokens in reversed(self._counts):
            span_s, came = now_s - before_s, requests - had
            if span_s > self._spec.short_window_s:
                break
            if span_s >= MOMENT_FRACTION * self._spec.short_window_s and came > SURE**2:
                share = 1 - SURE / math.sqrt(came)
                if share * came / span_s > least:
                    least = share * came / span_s
                    found = (share * max(0.0, prompt_tokens - had_tokens) / span_s, least * answer_tokens)
        return found
