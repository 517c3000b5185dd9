"""Arrivals over windows of time: how fast requests and their tokens come."""

from __future__ import annotations

from collections import deque

from conf.schema.autoscale import AutoscaleSpec


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
