"""Lines of OpenAI Batch output files, made of plain values.

A line is ``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``. As OpenAI's service does
it, a rejected request has a status code and its error in the response's body; the line's ``error`` stays null, for that
is kept for requests that got no response at all.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from serve.engine.protocol import Sample, TokenLogprob

_LOWEST = -9999.0
"""What vLLM writes for the logarithm of nothing, which JSON lacks."""


def chat_body(
    *, request_id: str, created: int, model: str, samples: Sequence[Sample], prompt_tokens: int
) -> dict[str, Any]:
    """Returns the body of an answer to /v1/chat/completions.

    Args:
        request_id: names the answer.
        created: seconds since 1970.
        model: what answered.
        samples: `SamplingSpec.n` of them.
        prompt_tokens: tokens of the prompt, chat template included.

    Source: openai.types.chat.ChatCompletion; vllm/entrypoints/openai/chat_completion/serving.py (0.32).
    """
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": sample.text, "refusal": None},
            "logprobs": None if sample.logprobs is None else _chat_logprobs(sample.logprobs),
            "finish_reason": sample.finish_reason,
        }
        for index, sample in enumerate(samples)
    ]
    head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion", "created": created, "model": model}
    return {**head, "choices": choices, "usage": _usage(samples, prompt_tokens)}


def completion_body(
    *, request_id: str, created: int, model: str, samples: Sequence[Sample], prompt_tokens: int
) -> dict[str, Any]:
    """Returns the body of an answer to /v1/completions; the arguments are those of `chat_body`.

    Source: openai.types.Completion; vllm/entrypoints/openai/completion/serving.py (0.32).
    """
    choices = [
        {
            "index": index,
            "text": sample.text,
            "logprobs": None if sample.logprobs is None else _completion_logprobs(sample.logprobs),
            "finish_reason": sample.finish_reason,
        }
        for index, sample in enumerate(samples)
    ]
    head = {"id": f"cmpl-{request_id}", "object": "text_completion", "created": created, "model": model}
    return {**head, "choices": choices, "usage": _usage(samples, prompt_tokens)}


def embedding_body(*, model: str, vector: Sequence[float], prompt_tokens: int, encoding_format: str) -> dict[str, Any]:
    """Returns the body of an answer to /v1/embeddings.

    Args:
        model: what answered.
        vector: the embedding.
        prompt_tokens: tokens of the input.
        encoding_format: ``float``, or ``base64`` for the bytes of little-endian float32.

    Source: openai.types.CreateEmbeddingResponse; vllm/entrypoints/pooling/embed/protocol.py (0.32).
    """
    embedding: list[float] | str = list(vector)
    if encoding_format == "base64":
        packed = array("f", vector)
        if sys.byteorder == "big":
            packed.byteswap()
        embedding = base64.b64encode(packed.tobytes()).decode()
    data = [{"object": "embedding", "index": 0, "embedding": embedding}]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def response_line(custom_id: str, request_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the line of an answered request."""
    return _line(custom_id, request_id, 200, body)


def error_line(
    custom_id: str | None, request_id: str, status_code: int, error_class: str, message: str
) -> dict[str, Any]:
    """Returns the line of a request that was not answered.

    Args:
        custom_id: the line's; null where it had none.
        request_id: names the request.
        status_code: 400 where the request was at fault, 500 where we were.
        error_class: such as ``prompt_too_long``; it becomes the error's code.
        message: one sentence.
    """
    kind = "invalid_request_error" if 400 <= status_code < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": error_class}
    return _line(custom_id, request_id, status_code, {"error": error})


def _line(custom_id: str | None, request_id: str, status_code: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status_code, "request_id": request_id, "body": body}
    return {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": response, "error": None}


def _usage(samples: Sequence[Sample], prompt_tokens: int) -> dict[str, int]:
    completion = sum(sample.completion_tokens for sample in samples)
    total = prompt_tokens + completion
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion, "total_tokens": total}


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {**_token(token.token, token.logprob), "top_logprobs": [_token(*pair) for pair in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": max(logprob, _LOWEST), "bytes": list(token.encode(errors="replace"))}


def _completion_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The older form: four lists. A token drawn is among the likely ones, as OpenAI promises."""
    offsets, offset = [], 0
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    likely = [{text: max(logprob, _LOWEST) for text, logprob in [(t.token, t.logprob), *t.top]} for t in tokens]
    return {
        "text_offset": offsets,
        "token_logprobs": [max(token.logprob, _LOWEST) for token in tokens],
        "tokens": [token.token for token in tokens],
        "top_logprobs": likely,
    }
