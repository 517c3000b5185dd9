"""An engine's outcome as bytes: what the log holds, and what equal requests share."""

from __future__ import annotations

import base64
import math
from typing import Any

import msgspec

from serve.engine.protocol import Completion, Outcome, Pooled, Rejection, Sample, TokenLogprob

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder()


def plain_outcome(outcome: Outcome) -> list[Any]:
    """Returns an outcome, without its request's id, as what JSON can hold."""
    if isinstance(outcome, Completion):
        samples = [[s.text, s.finish_reason, s.completion_tokens, _plain_logprobs(s)] for s in outcome.samples]
        return ["c", outcome.prompt_tokens, samples]
    if isinstance(outcome, Pooled):
        return ["p", outcome.prompt_tokens, base64.b64encode(outcome.vector).decode()]
    return ["r", outcome.error, outcome.message]


def outcome_of(plain: list[Any], request_id: str = "") -> Outcome:
    """Returns the outcome that `plain_outcome` was given.

    Raises:
        ValueError: when it is none.
    """
    try:
        kind, first, second = plain
        if kind == "c":
            samples = tuple(_sample(*sample) for sample in second)
            return Completion(request_id=request_id, samples=samples, prompt_tokens=first)
        if kind == "p":
            return Pooled(request_id=request_id, vector=base64.b64decode(second), prompt_tokens=first)
        if kind == "r":
            return Rejection(request_id=request_id, error=first, message=second)
    except (TypeError, ValueError) as error:
        raise ValueError(f"no outcome: {error}") from error
    raise ValueError(f"no outcome of kind {kind!r}")


def encode(value: Any) -> bytes:
    """Returns JSON, on one line."""
    return _ENCODER.encode(value)


def decode(data: bytes) -> Any:
    """Reads JSON.

    Raises:
        ValueError: when it is none.
    """
    return _DECODER.decode(data)  # msgspec's errors are ValueErrors


def _plain_logprobs(sample: Sample) -> list[Any] | None:
    if sample.logprobs is None:
        return None
    return [[token.token, token.logprob, list(token.top)] for token in sample.logprobs]


def _sample(text: str, finish_reason: str, completion_tokens: int, logprobs: list[Any] | None) -> Sample:
    tokens = None
    if logprobs is not None:
        tokens = tuple(
            TokenLogprob(
                token=token, logprob=_logprob(logprob), top=tuple((text, _logprob(value)) for text, value in top)
            )
            for token, logprob, top in logprobs
        )
    return Sample(text=text, finish_reason=finish_reason, completion_tokens=completion_tokens, logprobs=tokens)


def _logprob(value: float | None) -> float:
    return -math.inf if value is None else value  # JSON has no infinity
