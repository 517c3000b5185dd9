"""A kept answer: how it is written down, and given again as JSON or as a stream. What is read back is not trusted.

An entry is a version byte and the answer's JSON without what is fresh each time: ``id`` and ``created``.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

from serve.cache.key import CHAT, COMPLETIONS, EMBEDDINGS, Question

_VERSION = b"\x01"
_OBJECTS = {CHAT: b'"chat.completion"', COMPLETIONS: b'"text_completion"', EMBEDDINGS: b'"list"'}
_PREFIXES = {CHAT: "chatcmpl", COMPLETIONS: "cmpl", EMBEDDINGS: "embd"}
_FRESH = ("id", "created")
_OWN = ("metrics", "kv_transfer_params", "ec_transfer_params")
"""What was true of one computation; null in a kept answer."""
_BROKEN = (None, "abort", "error")


class _End(msgspec.Struct):
    finish_reason: str | None = None


class _Choice(msgspec.Struct):
    index: int
    message: dict[str, Any] | None = None
    text: str | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class _Answer(msgspec.Struct):
    model: str
    choices: list[_Choice]
    usage: dict[str, Any] | None = None
    system_fingerprint: str | None = None


_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENDS = msgspec.json.Decoder(list[_End])
_ANSWER = msgspec.json.Decoder(_Answer)
_ENCODER = msgspec.json.Encoder()


def make_entry(route: str, body: bytes) -> bytes | None:
    """Returns an answer as an entry; null where it is not whole (a choice was aborted) or of another kind."""
    try:
        parts = _parts(route, body)
        if route != EMBEDDINGS:
            ends = _ENDS.decode(parts.get("choices", b"[]"))
            if not ends or any(end.finish_reason in _BROKEN for end in ends):
                return None
    except ValueError:
        return None
    kept = {name: None if name in _OWN else value for name, value in parts.items() if name not in _FRESH}
    return _VERSION + _ENCODER.encode(kept)


def answer(route: str, entry: bytes) -> bytes:
    """Returns the answer as JSON, with an id and a time of its own.

    Raises:
        ValueError: when the entry is none, or one of another route.
    """
    body = _body(entry)
    _parts(route, body)
    fresh = {"id": _new_id(route), "created": int(time.time())}
    return _ENCODER.encode(fresh)[:-1] + b"," + body.lstrip()[1:]


def events(question: Question, entry: bytes) -> bytes:
    """Returns the answer as a whole stream of server-sent events, shaped as vLLM streams an answer.

    Raises:
        ValueError: when the entry is none, or one of another route.
    """
    body = _body(entry)
    _parts(question.route, body)
    whole = _ANSWER.decode(body)
    is_chat = question.route == CHAT
    head: dict[str, Any] = {
        "id": _new_id(question.route),
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": whole.model,
    }
    if whole.system_fingerprint is not None:
        head["system_fingerprint"] = whole.system_fingerprint
    chunks: list[dict[str, Any]] = []
    for choice in whole.choices:
        chunks += _chat_choice(choice) if is_chat else [_text_choice(choice)]
    lines = [{**head, "choices": [chunk]} for chunk in chunks]
    if question.has_usage:
        lines.append({**head, "choices": [], "usage": whole.usage})
    return b"".join(b"data: " + _ENCODER.encode(line) + b"\n\n" for line in lines) + b"data: [DONE]\n\n"


def renew(route: str, body: bytes) -> bytes:
    """Returns an answer that several asked for at once with an id of its own; anything else as it is."""
    try:
        parts = _parts(route, body)
    except ValueError:
        return body
    fresh = {"id": _new_id(route), "created": int(time.time())}
    return _ENCODER.encode({**fresh, **{name: value for name, value in parts.items() if name not in fresh}})


def _body(entry: bytes) -> bytes:
    if not entry.startswith(_VERSION):
        raise ValueError("no entry of this version")
    entry.decode()  # msgspec reads past bad UTF-8 where it only looks for a value's end
    return entry[1:]


def _parts(route: str, body: bytes) -> dict[str, msgspec.Raw]:
    try:
        parts = _PARTS.decode(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if bytes(parts.get("object", b"")) != _OBJECTS[route]:
        raise ValueError(f"no answer of {route}")
    return parts


def _new_id(route: str) -> str:
    return f"{_PREFIXES[route]}-{uuid.uuid4().hex}"


def _chat_choice(choice: _Choice) -> list[dict[str, Any]]:
    """Role, content, end: chunks of one choice."""
    message = choice.message or {}
    delta = {name: value for name, value in message.items() if name != "role" and value not in (None, [])}
    if isinstance(calls := delta.get("tool_calls"), list):
        if not all(isinstance(call, dict) for call in calls):
            raise ValueError("no tool calls")
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    first = {"role": message.get("role", "assistant"), "content": ""}
    last: dict[str, Any] = {"index": choice.index, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}
    if choice.stop_reason is not None:
        last["stop_reason"] = choice.stop_reason
    return [
        {"index": choice.index, "delta": first, "logprobs": None, "finish_reason": None},
        {"index": choice.index, "delta": delta, "logprobs": choice.logprobs, "finish_reason": None},
        last,
    ]


def _text_choice(choice: _Choice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "text": choice.text or "",
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
