"""What is sent for a request, and what its answer is in the contract's terms. Answers are not trusted: their shape is
checked, and what is read of them is bounded by who read them.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Any

import msgspec

from conf.schema.task import Task
from serve.engine.errors import RequestRejected
from serve.engine.protocol import Completion, Outcome, Pooled, Request, Sample, TokenLogprob
from serve.engine.vllm.grammar import grammar_fields

PATHS = {Task.generate: "/v1/completions", Task.embed: "/v1/embeddings", Task.classify: "/classify"}
"""Where each task is asked; one that is not here cannot be asked with tokens."""


class BadAnswer(Exception):
    """The service's fault: this is no answer to what was asked."""


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Text(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage


class _Vector(msgspec.Struct):
    embedding: str | list[float] | None = None
    probs: list[float] | None = None


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Refusal(msgspec.Struct):
    error: _Error


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_texts, _vectors = msgspec.json.Decoder(_Text), msgspec.json.Decoder(_Vectors)
_refusals, _models = msgspec.json.Decoder(_Refusal), msgspec.json.Decoder(_Models)


def body_of(task: Task, request: Request, model: str, priority: int, max_model_len: int | None) -> bytes:
    """Returns the body of a request.

    Args:
        task: what is asked, one of `PATHS`.
        request: its tokens go as they are: nothing is rendered or tokenized a second time.
        model: the name of the model, or of the adapter, at the service.
        priority: vLLM's; 0 is left out.
        max_model_len: the service's context in tokens; null where it does not say.

    Raises:
        RequestRejected: for what can never be answered.
    """
    length = len(request.token_ids)
    room = None if max_model_len is None else max_model_len - length
    if room is not None and room < (task is Task.generate):  # text needs room for a token
        message = f"the prompt has {length} tokens, the service's context {max_model_len}"
        raise RequestRejected("prompt_too_long", message)
    body: dict[str, Any] = {"model": model, "priority": priority} if priority else {"model": model}
    if task is Task.generate:
        body |= {"prompt": request.token_ids, **_sampling(request, room)}
    elif task is Task.embed:
        body |= {"input": request.token_ids, "encoding_format": "base64"}  # float32, as the model made it
    else:
        body |= {"input": request.token_ids}
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        error = "bad_grammar" if "structured_outputs" in body else "engine_rejected"
        raise RequestRejected(error, "the request has a text that is no Unicode") from None


def _sampling(request: Request, room: int | None) -> dict[str, Any]:
    """vLLM's names; all that a model's own defaults could change is said."""
    spec = request.sampling
    fields: dict[str, Any] = {
        "max_tokens": spec.max_tokens if room is None else min(spec.max_tokens, room),
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "top_k": spec.top_k,
        "min_p": spec.min_p,
        "repetition_penalty": spec.repetition_penalty,
        "presence_penalty": spec.presence_penalty,
        "frequency_penalty": spec.frequency_penalty,
    }
    if spec.seed is not None:
        fields["seed"] = spec.seed
    if spec.stop:
        fields["stop"] = spec.stop
    if spec.ignore_eos:
        fields["ignore_eos"] = True
    if spec.logprobs is not None:
        fields["logprobs"] = spec.logprobs
    if spec.n > 1:
        fields |= {"n": spec.n, "return_token_ids": True}  # usage counts the tokens of all answers together
    if grammar := grammar_fields(spec):
        fields["structured_outputs"] = grammar
    return fields


def outcome_of(task: Task, request: Request, raw: bytes) -> Outcome:
    """Returns the outcome that a 200 brings.

    Raises:
        BadAnswer: when it is no answer to this request.
    """
    try:
        return _text(request, raw) if task is Task.generate else _pooled(task, request, raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"the answer has another shape: {error}") from None


def _text(request: Request, raw: bytes) -> Completion:
    answer, spec = _texts.decode(raw), request.sampling
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    if len(choices) != spec.n:
        raise BadAnswer(f"{len(choices)} answers came, {spec.n} were asked for")
    total = answer.usage.completion_tokens or 0
    samples = []
    for number, choice in enumerate(choices):
        if choice.finish_reason not in ("stop", "length"):
            raise BadAnswer(f"an answer ended with '{str(choice.finish_reason)[:40]}'")
        if spec.logprobs is not None and choice.logprobs is None:
            raise BadAnswer("the answer has no log-probabilities")
        if choice.token_ids is not None:
            tokens = len(choice.token_ids)
        else:  # a service that does not say: shared out evenly
            tokens = total * (number + 1) // spec.n - total * number // spec.n
        places = None if spec.logprobs is None else _places(choice.logprobs, spec.logprobs)
        sample = Sample(text=choice.text, finish_reason=choice.finish_reason, completion_tokens=tokens, logprobs=places)
        samples.append(sample)
    return Completion(request_id=request.id, samples=tuple(samples), **_prompt(answer.usage))


def _places(logprobs: _Logprobs | None, count: int) -> tuple[TokenLogprob, ...]:
    assert logprobs is not None
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
    if not len(logprobs.tokens) == len(logprobs.token_logprobs) == len(tops):
        raise BadAnswer("the log-probabilities are of other tokens")
    places = []
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True):
        # the chosen token stands among the likely ones whether it is one or not, and then as the last
        likely = sorted((top or {}).items(), key=lambda pair: -pair[1])[:count]
        places.append(TokenLogprob(token=token, logprob=-math.inf if logprob is None else logprob, top=tuple(likely)))
    return tuple(places)


def _pooled(task: Task, request: Request, raw: bytes) -> Pooled:
    answer = _vectors.decode(raw)
    if len(answer.data) != 1:
        raise BadAnswer(f"{len(answer.data)} vectors came, 1 was asked for")
    vector = answer.data[0].embedding if task is Task.embed else answer.data[0].probs
    try:
        data = (
            base64.b64decode(vector, validate=True)
            if isinstance(vector, str)
            else struct.pack(f"<{len(vector or ())}f", *vector or ())
        )
    except (binascii.Error, ValueError, OverflowError, struct.error) as error:
        raise BadAnswer(f"the vector cannot be read: {error}") from None
    if not data or len(data) % 4:
        raise BadAnswer("the vector is empty, or no float32")
    return Pooled(request_id=request.id, vector=data, **_prompt(answer.usage))


def _prompt(usage: _Usage) -> dict[str, Any]:
    details = usage.prompt_tokens_details
    return {"prompt_tokens": usage.prompt_tokens, "cached_tokens": (details.cached_tokens or 0) if details else 0}


def refusal_of(raw: bytes) -> tuple[str, str]:
    """Returns the code and the sentence of an error in OpenAI's shape; empty where it is none."""
    try:
        error = _refusals.decode(raw).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", ""
    return str(error.code or ""), " ".join(error.message.split())[:2000]


def models_of(raw: bytes) -> dict[str, int | None]:
    """Returns the names that /v1/models lists, with the context in tokens where it says so.

    Raises:
        BadAnswer: when it is no such list.
    """
    try:
        return {model.id: model.max_model_len for model in _models.decode(raw).data}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadAnswer("/v1/models is no list of models") from None
