"""What a replica's engine has to do: counted for the autoscaler, which decides how many replicas there are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.watch import Report
from serve.engine.speed import Waiting
from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send
from serve.middleware.body import BYTES_PER_TOKEN
from serve.middleware.usage import Usage

MAX_KEPT = 2000
"""Streams whose times are kept."""
_FREE = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
"""Answered without the engine."""


class Load:
    """The innermost layer: what is refused, or answered by the cache, is no load."""

    def __init__(
        self,
        app: ASGIApp,
        spec: AutoscaleSpec,
        waiting: Callable[[], Waiting],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wraps ``app``.

        Args:
            app: the engine's.
            spec: the window and the percentile of what is told of TTFT and TPOT.
            waiting: asks the engine.
            clock: seconds.
        """
        self.app, self._spec, self._waiting, self._clock = app, spec, waiting, clock
        self._arrived = self._in_flight = self._answers = self._answer_tokens = 0
        self._prompt_tokens = 0.0
        # what ended ones had: how many tokens a body's bytes are
        self._ended_bytes, self._ended_tokens = float(BYTES_PER_TOKEN), 1.0
        self._ttft: deque[tuple[float, float]] = deque(maxlen=MAX_KEPT)
        self._tpot: deque[tuple[float, float]] = deque(maxlen=MAX_KEPT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in _FREE:
            await self.app(scope, receive, send)
            return
        came_s = self._clock()
        first_s: float | None = None
        length = dict(scope["headers"]).get(b"content-length", b"")
        size = int(length) if length.isdigit() else 0
        expected = size * self._ended_tokens / self._ended_bytes
        self._arrived += 1
        self._in_flight += 1
        self._prompt_tokens += expected

        def watch(message: Message) -> Awaitable[None]:
            nonlocal first_s
            # an answer that is no stream says nothing of its first token
            if first_s is None and message.get("body") and message.get("more_body", False):
                first_s = self._clock()
                self._ttft.append((first_s, first_s - came_s))
            return send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self._in_flight -= 1
            usage: Usage | None = scope.get("manta", {}).get("usage")
            if usage is not None:
                self._end(usage, size, expected, first_s)

    def _end(self, usage: Usage, size: int, expected: float, first_s: float | None) -> None:
        self._answers += 1
        self._answer_tokens += usage.completion
        self._prompt_tokens += usage.prompt - expected
        if size:
            # the last hundred or so count
            self._ended_bytes = 0.99 * self._ended_bytes + size
            self._ended_tokens = 0.99 * self._ended_tokens + usage.prompt
        if first_s is not None and usage.completion > 1:
            now_s = self._clock()
            self._tpot.append((now_s, (now_s - first_s) / (usage.completion - 1)))

    def report(self, start_s: float, prefill_tokens_per_s: float, decode_tokens_per_s: float) -> Report:
        """Returns what was counted so far; the arguments are the replica's, see `Report`."""
        waiting = self._waiting()
        return Report(
            arrived=self._arrived,
            prompt_tokens=self._prompt_tokens,
            answers=self._answers,
            answer_tokens=self._answer_tokens,
            in_flight=self._in_flight,
            waiting=min(waiting.requests, self._in_flight),
            waiting_tokens=waiting.prompt_tokens,
            ttft_s=self._percentile(self._ttft),
            tpot_s=self._percentile(self._tpot),
            start_s=start_s,
            prefill_tokens_per_s=prefill_tokens_per_s,
            decode_tokens_per_s=decode_tokens_per_s,
        )

    def _percentile(self, series: deque[tuple[float, float]]) -> float:
        since_s = self._clock() - self._spec.long_window_s
        while series and series[0][0] < since_s:
            series.popleft()
        values = sorted(value for _, value in series)
        if not values:
            return -1.0
        return values[min(len(values) - 1, int(len(values) * self._spec.slo_percentile / 100))]
