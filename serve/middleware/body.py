"""A request's body: read with bounds, parsed once, and made to keep to its sender's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from conf.schema.access import AccessSpec
from serve.middleware.answer import Message, Receive, Refused

JSON, FORM = "application/json", "multipart/form-data"
FORM_BYTES = 64 << 10
"""What a form may have beside its file."""
BYTES_PER_TOKEN = 4
ASSUMED_ANSWER_TOKENS = 256
"""Reserved for an answer whose length the request leaves open."""
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_PROMPTS = ("prompt", "input", "messages", "documents", "texts", "text_1", "text_2", "queries")
_MAX_PRIORITY = 2**31 - 1


class Gone(Exception):
    """The client left before its body was complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """A JSON body that may go on."""

    body: dict[str, Any]
    raw: bytes
    """The same as bytes: the client's own where nothing had to change."""
    priority: int
    tokens: int
    """An estimate of what it uses, prompt and answers."""


async def read_body(receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """Reads a body, with or without a content-length; never holds more than ``max_bytes`` and one chunk.

    Raises:
        Refused: 413 when it is longer, 408 when it takes too long.
        Gone: when the client leaves.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                data += message.get("body", b"")
                if len(data) > max_bytes:
                    raise too_large(max_bytes)
                if not message.get("more_body", False):
                    return bytes(data)
    except TimeoutError:
        raise Refused(
            408, f"The body did not arrive within {timeout_s:g} s.", code="request_timeout", headers=CLOSE
        ) from None


CLOSE = (("connection", "close"),)
"""The rest of the body is not read, so the connection can carry no other request."""


def too_large(max_bytes: int) -> Refused:
    """Returns the refusal of a body that is too long."""
    return Refused(413, f"The body may have at most {max_bytes} bytes.", code="body_too_large", headers=CLOSE)


def replay(raw: bytes, receive: Receive) -> Receive:
    """Returns a ``receive`` that gives ``raw`` first, then what the client does next, such as leaving."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return again


async def left(receive: Receive) -> None:
    """Returns once the client has left; to be called when its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def admit(raw: bytes, path: str, spec: AccessSpec, priority: int) -> Admitted:
    """Parses a JSON body and makes it keep to the limits.

    Args:
        raw: the body.
        path: of the request; says whether it asks for an answer that has no end of its own.
        spec: the limits.
        priority: of the sender's class, vLLM's: lower is sooner. A body may ask for a later turn, not an earlier one.

    Raises:
        Refused: 400 when it is no JSON, too deep or out of bounds, 404 for the name of a model that can be none.
    """
    body = _parse(raw, spec.max_json_depth)
    _check_model(body)
    num_sequences = _num_sequences(body, spec.max_sequences)
    is_changed = False
    answer_tokens, field = _answer_tokens(body, path, spec)
    if field is not None:
        body[field] = answer_tokens
        is_changed = True
    own = _whole(body, "priority", -_MAX_PRIORITY)
    turn = priority if own is None else min(max(own, priority), _MAX_PRIORITY)
    if turn != (own or 0):  # vLLM takes 0 where there is none
        body["priority"] = turn
        is_changed = True
    # what is passed on is what was checked: one reading of doubled names, and no other encoding of numbers
    raw = msgspec.json.encode(body) if is_changed else raw
    tokens = len(raw) // BYTES_PER_TOKEN + answer_tokens * num_sequences
    return Admitted(body=body, raw=raw, priority=turn, tokens=tokens)


def _parse(raw: bytes, max_depth: int) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except RecursionError:
        raise _bad(f"The JSON may be at most {max_depth} levels deep.", "json_too_deep") from None
    except UnicodeDecodeError:
        raise _bad("The body is no UTF-8.", "invalid_json") from None
    except msgspec.MsgspecError:
        raise _bad("The body is no valid JSON.", "invalid_json") from None
    if not isinstance(body, dict):
        raise _bad("The body must be a JSON object.", "invalid_json")
    # a body with fewer brackets than levels is not deep; those with more are walked
    if raw.count(b"{") + raw.count(b"[") > max_depth and _depth_exceeds(body, max_depth):
        raise _bad(f"The JSON may be at most {max_depth} levels deep.", "json_too_deep")
    return body


def _depth_exceeds(body: Any, limit: int) -> bool:
    level, depth = [body], 0
    while level:
        depth += 1
        if depth > limit:
            return True
        level = [child for node in level for child in _children(node) if isinstance(child, (dict, list))]
    return False


def _children(node: dict | list) -> Iterator[Any]:
    return iter(node.values() if isinstance(node, dict) else node)


def _check_model(body: dict[str, Any]) -> None:
    model = body.get("model")
    if model is None:
        return
    if not isinstance(model, str):
        raise _bad("model must be text.", "invalid_model", "model")
    parts = model.replace("\\", "/").split("/")
    if len(model) > 256 or not model.isprintable() or ".." in parts:
        raise Refused(404, "There is no such model.", kind="not_found_error", code="model_not_found", param="model")


def _num_sequences(body: dict[str, Any], limit: int) -> int:
    """How many answers are asked for: prompts times choices."""
    choices = [_whole(body, field, 1) or 1 for field in ("n", "best_of")]
    total = max(choices) * max((_num_prompts(body[field]) for field in _PROMPTS if field in body), default=1)
    if total > limit:
        raise _bad(f"Prompts times n may be at most {limit}.", "too_many_sequences")
    return total


def _num_prompts(value: Any) -> int:
    """How many prompts a field holds: a list of texts or lists is several, one of numbers or messages is one."""
    if not isinstance(value, list):
        return 1
    return max(1, sum(isinstance(item, (str, list)) for item in value))


def _answer_tokens(body: dict[str, Any], path: str, spec: AccessSpec) -> tuple[int, str | None]:
    """Tokens that an answer may have, and the field to set where the limit must be written into the body."""
    inner = body.get("sampling_params")
    asked: list[int] = []
    for part in (body, inner) if isinstance(inner, dict) else (body,):
        for field in _LIMITS:
            value = _whole(part, field, 0)
            if value is None:
                continue
            if spec.max_tokens is not None and value > spec.max_tokens:
                raise _bad(f"{field} may be at most {spec.max_tokens}.", "max_tokens_too_large", field)
            asked.append(value)
    if asked:
        return max(asked), None
    field = next((name for part, name in _OPEN_ENDED if part in path), None)
    if field is None:
        return 0, None
    return (ASSUMED_ANSWER_TOKENS, None) if spec.max_tokens is None else (spec.max_tokens, field)


_OPEN_ENDED = (
    ("/chat/completions", "max_completion_tokens"),
    ("/completions", "max_tokens"),
    ("/responses", "max_output_tokens"),
    ("/messages", "max_tokens"),
)
"""Paths that make text, and the field that ends it."""


def _whole(body: dict[str, Any], field: str, least: int) -> int | None:
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        said = f"{field} must be a whole number of at least {least}, got {repr(value)[:50]}."
        raise _bad(said, "invalid_value", field)
    return value


def _bad(message: str, code: str, param: str | None = None) -> Refused:
    return Refused(400, message, code=code, param=param)
