"""What a load's clients saw of the answers, and what it comes to.

Of an answer no more is read than what is measured: when tokens came and how many there were. Percentiles are
interpolated as numpy's are, so that they can be laid beside those of `vllm bench serve`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

DONE = b"[DONE]"


@dataclass(kw_only=True, slots=True)
class Seen:
    """What a client saw of one request; times in seconds of one clock."""

    start_s: float
    first_s: float | None = None
    """The first token; null without streaming."""
    last_s: float | None = None
    """The last token; null without streaming."""
    end_s: float = 0.0
    """The end of the response."""
    prompt_tokens: int = 0
    tokens: int = 0
    """Of the answer, as the server counts them."""
    error: str | None = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Body(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Body)


@dataclass(kw_only=True, slots=True)
class EventReader:
    """Reads a stream of server-sent events, however it is cut into chunks."""

    seen: Seen
    is_done: bool = False
    """Whether the stream said that it ends."""
    _rest: bytes = field(default=b"", init=False)

    def feed(self, chunk: bytes, now_s: float) -> None:
        """Takes bytes that have come.

        The first token is in the first event that is more than a role: vLLM sends the role with the first token, but a
        server may send it before.

        Raises:
            ValueError: for an event that is no JSON.
        """
        *events, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if not event.startswith(b"data:"):  # comments keep connections open
                continue
            data = event[5:].strip()
            if data == DONE:
                self.is_done = True
                continue
            body = _decoder.decode(data)
            if body.error is not None:
                self.seen.error = f"in the stream: {body.error}"
            if body.usage is not None:
                self.seen.prompt_tokens = body.usage.prompt_tokens
                self.seen.tokens = body.usage.completion_tokens
            delta = body.choices[0].delta if body.choices else None
            if delta is not None and (delta.content or delta.role is None):
                self.seen.first_s = now_s if self.seen.first_s is None else self.seen.first_s
                self.seen.last_s = now_s


def read_usage(seen: Seen, body: bytes) -> None:
    """Notes the tokens of an answer that came in one piece.

    Raises:
        ValueError: for what is no JSON.
    """
    usage = _decoder.decode(body).usage or _Usage()
    seen.prompt_tokens, seen.tokens = usage.prompt_tokens, usage.completion_tokens


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns a percentile, interpolated between its neighbours.

    Raises:
        ValueError: without values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def figures(seen: Sequence[Seen], output_tokens: int) -> dict[str, Any]:
    """Returns what a load comes to; latencies in milliseconds.

    Raises:
        ValueError: when a request failed or has another number of tokens than it asked for.
    """
    for request in seen:
        if request.error is None and request.tokens != output_tokens:
            request.error = f"{request.tokens} tokens instead of {output_tokens}"
    failed = [request.error for request in seen if request.error is not None]
    if failed:
        raise ValueError(f"{len(failed)} of {len(seen)} requests failed, the first: {failed[0][:500]}")
    seconds = max(request.end_s for request in seen) - min(request.start_s for request in seen)
    found: dict[str, Any] = {
        "requests": len(seen),
        "seconds": seconds,
        "prompt_tokens": sum(request.prompt_tokens for request in seen),
        "completion_tokens": sum(request.tokens for request in seen),
        "requests_per_s": len(seen) / seconds,
        "tokens_per_s": sum(request.tokens for request in seen) / seconds,
    }
    times = {"e2e": [request.end_s - request.start_s for request in seen]}
    streamed = [(r.start_s, r.first_s, r.last_s) for r in seen if r.first_s is not None and r.last_s is not None]
    if streamed:
        times["ttft"] = [first - start for start, first, _ in streamed]
        if output_tokens > 1:
            times["tpot"] = [(last - first) / (output_tokens - 1) for _, first, last in streamed]
    for name, values in times.items():
        for percent in (50, 99):
            found[f"{name}_p{percent}_ms"] = 1000 * percentile(values, percent)
    return found
