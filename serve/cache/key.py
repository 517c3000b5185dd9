"""Which requests have an answer worth keeping, and what it is kept under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.fingerprint import fingerprint_model

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ROUTES = frozenset((CHAT, COMPLETIONS, EMBEDDINGS))
"""The paths whose answers can be kept."""

_IGNORED = frozenset(
    (
        *("user", "safety_identifier", "session_id", "request_id", "metadata", "store", "prompt_cache_key"),
        *("stream", "stream_options", "priority", "service_tier"),
    )
)
"""Fields that do not change an answer. Every other one, known or not, is part of the key."""

_DEFAULTS = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0}
"""What these fields mean where they are absent or null, whatever the model and its generation_config.json."""

_ACTS = ("kv_transfer_params", "ec_transfer_params")
"""Fields that ask for more than an answer."""

_DECODER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A request whose answer can be kept."""

    key: str
    """64 hex digits: a hash of service, API key, path and what decides the answer."""
    route: str
    is_stream: bool = False
    has_usage: bool = False
    """Whether the stream ends with the usage."""


def question(
    route: str, body: bytes, *, fingerprint: str, tenant: str | None = None, is_sampled_kept: bool = False
) -> Question | None:
    """Returns what a request asks, where an equal one has an equal answer; else null.

    That is so for embeddings, and for one answer at temperature 0 to a text. Text alone: an image's URL may show
    another image tomorrow. What cannot be read is none of ours: the engine's API says what is wrong with it.

    Args:
        route: the path, one of `ROUTES`.
        body: JSON.
        fingerprint: see `answer_fingerprint`.
        tenant: the name of the API key, where keys share no answers.
        is_sampled_kept: whether drawn answers count where the request has a seed.
    """
    try:
        asked = _DECODER.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    if not isinstance(asked, dict) or any(asked.get(name) is not None for name in _ACTS):
        return None
    if not _is_text(asked) or not (route == EMBEDDINGS or _is_repeatable(asked, is_sampled_kept)):
        return None
    is_stream, options = asked.get("stream"), asked.get("stream_options")
    if is_stream not in (None, True, False) or not _is_plain_stream(asked if is_stream else {}):
        return None
    return Question(
        key=request_key(route, asked, fingerprint, tenant),
        route=route,
        is_stream=is_stream is True and route != EMBEDDINGS,
        has_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def answer_fingerprint(model: ModelSpec, engine: EngineSpec, version: str, api: Mapping[str, Any]) -> str:
    """Returns 16 hex digits that change with whatever decides a service's answers.

    How the model is spread over devices does not count: the last bits of logits depend on it, as they do on the batch
    that a request happens to be computed in.

    Args:
        model: the checkpoint; its files are read, see `fingerprint_model`.
        engine: the deployment's engine.
        version: of the engine's library: templates and defaults are its own.
        api: options of the engine's API, such as a parser of tool calls.

    Raises:
        OSError: when a file of the model cannot be read.
    """
    names = [model.name, *model.adapters]
    decides = [fingerprint_model(model), names, engine.kind.value, engine.max_model_len, engine.vllm, engine.env]
    text = json.dumps([*decides, version, dict(api)], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def request_key(route: str, asked: Mapping[str, Any], fingerprint: str, tenant: object) -> str:
    """Returns 64 hex digits that change with whatever decides an answer, and with nothing else that clients send.

    Args:
        route: the path.
        asked: the request.
        fingerprint: see `answer_fingerprint`.
        tenant: what else sets requests apart; JSON can hold it.
    """
    decides = {
        name: value
        for name, value in asked.items()
        if name not in _IGNORED and not (name in _DEFAULTS and _is_default(value, _DEFAULTS[name]))
    }
    if route == CHAT and decides.get("max_tokens") is None and "max_completion_tokens" in decides:
        decides["max_tokens"] = decides.pop("max_completion_tokens")
    if asked.get("temperature") == 0:
        decides["temperature"] = 0  # 0, 0.0 and -0.0 are one
        if _is_default(asked.get("top_p"), 1):
            decides.pop("top_p", None)
    # 32 bytes, for the asker chooses what is hashed
    digest = hashlib.blake2b(_ENCODER.encode([fingerprint, tenant, route]), digest_size=32)
    digest.update(_ENCODER.encode(decides))
    return digest.hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_default(value: Any, default: int) -> bool:
    return value is None or (_is_number(value) and value == default)


def _is_repeatable(asked: dict[str, Any], is_sampled_kept: bool) -> bool:
    if not _is_default(asked.get("n"), 1) or asked.get("use_beam_search"):
        return False
    temperature, seed = asked.get("temperature"), asked.get("seed")
    if _is_number(temperature) and temperature == 0:
        return True
    return is_sampled_kept and isinstance(seed, int) and not isinstance(seed, bool)


def _is_text(asked: dict[str, Any]) -> bool:
    """Whether there is nothing but text and token ids to read."""
    messages = asked.get("messages") or []
    return (
        isinstance(messages, list)
        and all(isinstance(message, dict) and _is_words(message.get("content")) for message in messages)
        and _is_words(asked.get("prompt"))
        and _is_words(asked.get("input"))
        and asked.get("prompt_embeds") is None
    )


def _is_words(value: Any) -> bool:
    if value is None or isinstance(value, (str, int)):
        return True
    if isinstance(value, dict):  # a part of a message
        return value.get("type") in ("text", "refusal")
    return isinstance(value, list) and all(_is_words(part) for part in value)


def _is_plain_stream(asked: dict[str, Any]) -> bool:
    """Whether the stream has nothing but what `entry.events` makes of an answer."""
    options = asked.get("stream_options") or {}
    is_plain = isinstance(options, dict) and all(
        name == "include_usage" or not value for name, value in options.items()
    )
    more = (value for name, value in asked.items() if name.startswith("return_") or name == "prompt_logprobs")
    return is_plain and not any(more)
