"""What vLLM answers, in the contract's terms."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

from conf.schema.task import Task
from serve.engine.errors import RequestRejected
from serve.engine.protocol import (
    Completion,
    ForcedToken,
    Outcome,
    Pooled,
    Rejection,
    Request,
    Sample,
    TokenLogprob,
)
from serve.engine.vllm.compiler import OTHER_COMPILER, compiler_message
from serve.engine.vllm.grammar import has_grammar


def outcome(task: Task, request: Request, output: Any) -> Outcome:
    """Turns a finished output into an outcome.

    Args:
        task: the engine's.
        request: what was asked.
        output: vLLM's RequestOutput, or for the other tasks than generate its PoolingRequestOutput.
    """
    tokens = {"prompt_tokens": len(output.prompt_token_ids or ()), "cached_tokens": output.num_cached_tokens or 0}
    if task is not Task.generate:
        numbers = output.outputs.data.flatten().float().cpu().numpy()
        vector = numbers.astype("<f4").tobytes()
        return Pooled(request_id=request.id, vector=vector, **tokens)
    if any(answer.finish_reason == "error" for answer in output.outputs):
        # in 0.26-0.32 a grammar that did not compile, or that refused a token after all
        message = "vLLM ended it with an error; its log says why"
        error = "bad_grammar" if has_grammar(request.sampling) else "engine_rejected"
        return Rejection(request_id=request.id, error=error, message=message)
    if request.forced_from is not None:
        return Completion(request_id=request.id, samples=(), forced=tuple(_forced(request, output)), **tokens)
    samples = tuple(_sample(answer, request.sampling.logprobs) for answer in output.outputs)
    return Completion(request_id=request.id, samples=samples, **tokens)


def _forced(request: Request, output: Any) -> Iterator[ForcedToken]:
    """The places of a given text; vLLM puts the text's own token first, whatever its rank."""
    assert request.forced_from is not None
    for at in range(request.forced_from, len(request.token_ids)):
        token_id, place = request.token_ids[at], output.prompt_logprobs[at]
        likely = sorted((each.rank, other, each.logprob) for other, each in place.items())
        top = tuple((other, logprob) for rank, other, logprob in likely if rank <= request.forced_top)
        yield ForcedToken(token_id=token_id, logprob=float(place[token_id].logprob), top=top)


def _sample(answer: Any, logprobs: int | None) -> Sample:
    places = None
    if logprobs is not None:
        pairs = zip(answer.token_ids, answer.logprobs or (), strict=False)
        places = tuple(_token_logprob(place, token_id, logprobs) for token_id, place in pairs)
    return Sample(
        text=answer.text,
        finish_reason=str(answer.finish_reason),
        completion_tokens=len(answer.token_ids),
        logprobs=places,
    )


def _token_logprob(place: Any, token_id: int, count: int) -> TokenLogprob:
    """One place of an answer; `place` maps token ids to vLLM's Logprob, the chosen token and the `count` likeliest."""
    chosen = place[token_id]
    likely = sorted((other for other in place.values() if other.rank <= count), key=lambda other: other.rank)
    top = tuple((other.decoded_token or "", float(other.logprob)) for other in likely)
    return TokenLogprob(token=chosen.decoded_token or "", logprob=float(chosen.logprob), top=top)


def request_errors() -> tuple[type[Exception], ...]:
    """Returns what vLLM raises against a request: ValueError, or in newer versions classes that are none."""
    from vllm import exceptions

    names = ("VLLMClientError", "VLLMValidationError")
    return (ValueError, *(getattr(exceptions, name) for name in names if hasattr(exceptions, name)))


def rejected(error: BaseException) -> RequestRejected:
    """Returns vLLM's word against a request as a rejection."""
    text = compiler_message(error)
    if "longer than the maximum model length" in text or "maximum context length" in text:
        return RequestRejected("prompt_too_long", text)
    if "not supported by xgrammar" in text:
        text += OTHER_COMPILER
    is_grammar = any(word in text.lower() for word in ("grammar", "json schema", "structured_outputs"))
    return RequestRejected("bad_grammar" if is_grammar else "engine_rejected", text)


async def cosine(request: Request, embed: Callable[[Request], Awaitable[Outcome]]) -> Outcome:
    """Scores a pair by the cosine of its two embeddings.

    Args:
        request: its tokens are the first text's and the second's, split where the second begins.
        embed: gives a text's embedding as `Pooled`.

    Returns:
        One float32 in -1..1; the tokens of both texts are counted.

    Raises:
        RequestRejected: when one of the texts can never be embedded.
    """
    import numpy as np

    split = len(request.token_ids) if request.split is None else request.split
    texts = (request.token_ids[:split], request.token_ids[split:])
    asked = [replace(request, id=f"{request.id}/{i}", token_ids=text, split=None) for i, text in enumerate(texts)]
    tasks = [asyncio.ensure_future(embed(half)) for half in asked]
    try:
        outcomes = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    halves = [half for half in outcomes if isinstance(half, Pooled)]
    assert len(halves) == 2, outcomes
    first, second = (np.frombuffer(half.vector, "<f4").astype("f8") for half in halves)
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    score = np.array([first @ second / length if length else 0.0], "<f4")
    tokens, cached = (sum(getattr(half, name) for half in halves) for name in ("prompt_tokens", "cached_tokens"))
    return Pooled(request_id=request.id, vector=score.tobytes(), prompt_tokens=tokens, cached_tokens=cached)
