"""What of a request may be worded otherwise, and what must be equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from conf.schema.semantic import SemanticSpec
from serve.cache.key import CHAT, COMPLETIONS, request_key

_DECODER = msgspec.json.Decoder()
_ENDS = ",.;:?"
"""What stands behind a number and is none of it. All else counts: signs, units, the feet of 5' and the inches of 5"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """A request, parted."""

    text: str
    """The last user message, or the prompt: what may be worded otherwise."""
    group: str
    """64 hex digits: a hash of all else, as in `serve.cache.key.Question`, and of the text's numbers."""


def likeness(
    route: str, body: bytes, spec: SemanticSpec, *, fingerprint: str, tenant: str | None = None
) -> Likeness | None:
    """Parts a request that `serve.cache.key.question` takes; null where only an equal one has its answer.

    That is so for embeddings; where tools play a part; where the answer repeats the prompt; where the last message is
    not the user's; and for a text that is empty, or too long for embedding models to read whole.

    Args:
        route: the path.
        body: JSON, which has been read before.
        spec: the configuration.
        fingerprint: see `serve.cache.key.answer_fingerprint`.
        tenant: the name of the API key, where keys share no answers.
    """
    asked: dict[str, Any] = _DECODER.decode(body)
    if _has_tools(asked) or _repeats(asked):
        return None
    if route == CHAT:
        text, rest = _last_message(asked)
    elif route == COMPLETIONS:
        text, rest = asked.get("prompt"), {**asked, "prompt": None}
    else:
        return None
    if not isinstance(text, str) or not text.strip() or len(text) > spec.max_text_chars:
        return None
    fixed = [tenant, "similar", numbers(text) if spec.numbers else None]
    return Likeness(text=text, group=request_key(route, rest, fingerprint, fixed))


def numbers(text: str) -> list[str]:
    """Returns the words that hold a digit, a fraction or a number of another script, in their order.

    Whatever stands between spaces is a word: ``KX-48213``, ``-5``, ``$129.90``, ``3rd``. In a script without spaces it
    is a whole sentence, which no other text has.
    """
    return [word.rstrip(_ENDS) for word in text.split() if any(map(str.isnumeric, word))]


def _last_message(asked: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    """The text, and the request without it; null where it is not the user's, or has several parts."""
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages or messages[-1].get("role") != "user":
        return None, asked
    last = messages[-1]
    text = last.get("content")
    if isinstance(text, list):
        is_plain = len(text) == 1 and isinstance(text[0], dict) and text[0].keys() == {"type", "text"}
        text = text[0]["text"] if is_plain else None
    return text, {**asked, "messages": [*messages[:-1], {**last, "content": None}]}


def _has_tools(asked: dict[str, Any]) -> bool:
    messages = asked.get("messages") or []
    return bool(asked.get("tools") or asked.get("functions")) or any(
        message.get("role") in ("tool", "function") or message.get("tool_calls") or message.get("function_call")
        for message in messages
    )


def _repeats(asked: dict[str, Any]) -> bool:
    """Whether the answer holds the prompt, or ids of its tokens."""
    asks = (name for name, value in asked.items() if value is not None and value is not False)
    return any(name in ("echo", "prompt_logprobs") or name.startswith("return_") for name in asks)
