"""A prompt as a chain of block keys, of which two prompts share as many as they share blocks at the beginning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from struct import iter_unpack
from typing import Any

# Python's own hash of bytes is SipHash with the process's secret: nobody outside can make two prompts collide, and it
# is faster from Python than xxhash-like libraries, which cost a call and a conversion more (docs/benchmarks/router.md).
# Keys mean nothing in another process.


def block_keys(prompt: bytes | Sequence[int], block_size: int) -> Iterator[int]:
    """Yields a key for each whole block of a prompt, computed when it is asked for.

    A key stands for its block and all before it.

    Args:
        prompt: Text in UTF-8, or token ids.
        block_size: Bytes, or tokens, of a block.
    """
    key = 0
    if isinstance(prompt, bytes):
        whole = memoryview(prompt)[: len(prompt) // block_size * block_size]
        for (block,) in iter_unpack(f"{block_size}s", whole):  # 64 blocks take 19 microseconds, with slices 24
            key = hash((key, block))
            yield key
        return
    for end in range(block_size, len(prompt) + 1, block_size):
        key = hash((key, tuple(prompt[end - block_size : end])))
        yield key


def prompt_of(body: Mapping[str, Any]) -> bytes | Sequence[int]:
    """Returns what stands for the prompt of a request's body: equal prompts give equal beginnings.

    Not the model's own rendering: roles and contents in their order, after what a chat template puts first (tools) and
    what parts KV caches (the model or adapter). A body that says nothing of a prompt gives little, never an error: the
    engine refuses it, not the router.

    Args:
        body: The parsed JSON of a completion, a chat completion or an embedding request.
    """
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, list) and prompt and type(prompt[0]) is list:
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    parts = [_text(body.get("model"))]
    if tools := body.get("tools"):
        parts.append(_text(tools))
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, Mapping):
                parts.append(f"{_text(message.get('role'))}\n{_text(message.get('content'))}")
    else:
        parts.append(_text(prompt))
    return "\n".join(parts).encode(errors="replace")


def _text(content: object) -> str:
    """The text of a field: itself, or its parts one after the other. What is no text (an image) counts by its JSON."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(map(_part, content))
    return _part(content)


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return part["text"]
    try:
        return json.dumps(part, separators=(",", ":"))
    except RecursionError:  # nested as deep as a parser lets through
        return ""
