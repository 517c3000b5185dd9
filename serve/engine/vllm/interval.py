"""How many tokens an event of a stream carries: one, or more while the process that sends them has no time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

BUSY, IDLE = 0.5, 0.2
"""Shares of a core: above the first an event takes up twice as many tokens, below the second half as many. Half as many
cost at most twice as much, which has to fit below the first."""
MOST = 8
LOOK_S = 0.25


def decide(tokens: int, busy: float) -> int:
    """Returns the tokens of an event from now on.

    Args:
        tokens: of an event until now.
        busy: the share of a core that the process took with it.
    """
    if busy > BUSY:
        return min(2 * tokens, MOST)
    return max(1, tokens // 2) if busy < IDLE else tokens


class StreamInterval:
    """Sets vLLM's stream interval of all requests that stream, by what their thread takes of a core.

    Each event of a stream is an object, a piece of JSON and a call of the kernel. One interpreter manages some ten
    thousand in a second; an engine with a small model makes more tokens than that, and without this both they and new
    requests wait for the thread. The first token goes out at once, whatever the interval. A request that asks for an
    interval of its own keeps it.

    Source: `RequestState.make_request_output` of vllm/v1/engine/output_processor.py (0.26, 0.32), whose interval is set
    once and for all by ``--stream-interval``.
    """

    def __init__(
        self,
        states: Mapping[str, Any],
        now: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        """Args: vLLM's records of the requests that run, seconds, and seconds of CPU of the thread that calls."""
        self._states, self._now, self._used = states, now, used
        self._looked_at = now()
        self._used_s: float | None = None
        self._are_plain = True
        self.tokens = 1

    def look(self) -> None:
        """To be called often, by the thread of the requests, between two outputs of the engine."""
        now = self._now()
        passed_s = now - self._looked_at
        if passed_s < LOOK_S:
            return
        used_s, before_s = self._used(), self._used_s
        self._looked_at, self._used_s = now, used_s
        if before_s is None:  # the thread has had other things to do before
            return
        self.tokens = decide(self.tokens, (used_s - before_s) / passed_s)
        if self.tokens > 1 or not self._are_plain:
            thinned = [self._set(state) for state in self._states.values()]
            self._are_plain = self.tokens == 1 and not any(thinned)

    def _set(self, state: Any) -> bool:
        """Returns whether the request's interval is one that was set here, and not one."""
        from vllm.sampling_params import RequestOutputKind

        is_ours = getattr(state, "is_thinned", False)
        if state.detokenizer is None or state.output_kind is not RequestOutputKind.DELTA:
            return False
        if state.stream_interval > 1 and not is_ours:
            return False
        made = state.detokenizer.num_output_tokens()
        if not is_ours:
            # with an interval of one vLLM does not count what it has sent, which is all
            state.sent_tokens_offset, state.is_thinned = made, True
        if self.tokens > 1 or state.sent_tokens_offset == made:  # else some would never be sent
            state.stream_interval, state.is_thinned = self.tokens, self.tokens > 1
        return state.is_thinned
