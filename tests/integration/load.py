"""Mixed requests of the official client, and what each is answered."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

TEXTS = [
    "My laptop does not turn on. Order 4711.",
    "Where is my parcel? It should have been here on Monday, and nobody answers the phone.",
    "The invoice of March has the wrong address. " * 6,
    "I want to send the shoes back, they are too small, and the colour is not the one in the picture. " * 4,
]
LENGTHS = (1, 12, 40)
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "size": {"type": "integer", "maximum": 99}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}
COUNT = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
TOOL = {"type": "function", "function": {"name": "count", "parameters": COUNT, "strict": True}}
CHANGES: list[dict[str, Any]] = [
    {},
    {"logprobs": 2},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "count"}}},
]


@dataclass(kw_only=True)
class Answer:
    text: str = ""
    finish: str | None = None
    num_tokens: int = 0
    logprobs: list[float] = field(default_factory=list)

    def is_like(self, other: Answer) -> bool:
        """Whether they say the same; what else is in a batch changes the last bits of a probability."""
        ours, theirs = (self.text, self.finish, self.num_tokens), (other.text, other.finish, other.num_tokens)
        pairs = zip(self.logprobs, other.logprobs, strict=False)
        is_near = all(math.isclose(one, two, abs_tol=0.02) for one, two in pairs)
        return ours == theirs and len(self.logprobs) == len(other.logprobs) and is_near


@dataclass(kw_only=True)
class Outcome:
    ask: dict[str, Any]
    is_stream: bool
    answer: Answer | None = None
    error: openai.APIError | None = None


def mixed() -> list[dict[str, Any]]:
    """Chats and completions, short and long, free and bound to a schema."""
    asks: list[dict[str, Any]] = []
    for number, text in enumerate(TEXTS):
        for place, change in enumerate(CHANGES):
            length = 64 if place > 1 else LENGTHS[(number + place) % 3]
            chat = {"messages": [{"role": "user", "content": text}], "max_tokens": length, **change}
            if "logprobs" in change:
                chat |= {"logprobs": True, "top_logprobs": 2}
            asks.append(chat)
            if place < 2:
                asks.append({"prompt": text, "max_tokens": LENGTHS[(number + place + 1) % 3], **change})
    return asks


async def answer(client: openai.AsyncOpenAI, ask: dict[str, Any], is_stream: bool) -> Answer:
    """Asks past the response cache."""
    api = client.completions if "prompt" in ask else client.chat.completions
    options = {"model": "demo", "temperature": 0, "extra_headers": {"cache-control": "no-store"}, **ask}
    if is_stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    given: Any = await api.create(**options)
    chunks = [chunk async for chunk in given] if is_stream else [given]
    made = Answer()
    for chunk in chunks:
        made.num_tokens = chunk.usage.completion_tokens if chunk.usage else made.num_tokens
        for choice in chunk.choices:
            said = getattr(choice, "delta", None) or getattr(choice, "message", None)
            made.text += (said.content or "") if said is not None else choice.text
            for call in (said and said.tool_calls) or []:
                made.text += (call.function.name or "") + (call.function.arguments or "")
            made.finish = choice.finish_reason or made.finish
            if choice.logprobs is not None:
                content = getattr(choice.logprobs, "content", None)
                found = [token.logprob for token in content] if content else choice.logprobs.token_logprobs or []
                made.logprobs += found
    made.text = made.text.rstrip()  # vLLM's parser of tool calls strips what is not streamed
    return made


async def load(
    client: openai.AsyncOpenAI, count: int, num_clients: int, at: Callable[[int], None] = lambda _: None
) -> list[Outcome]:
    """Asks ``count`` requests with so many at a time, and tells ``at`` how many have begun so far."""
    asks, outcomes = mixed(), []
    free = asyncio.Semaphore(num_clients)

    async def one(number: int) -> Outcome:
        ask = asks[number % len(asks)]
        outcome = Outcome(ask=ask, is_stream=number // len(asks) % 2 == number % 2)
        async with free:
            at(number)
            try:
                outcome.answer = await answer(client, ask, outcome.is_stream)
            except openai.APIError as error:
                outcome.error = error
        return outcome

    outcomes = await asyncio.gather(*(one(number) for number in range(count)))
    return list(outcomes)


async def wrong(client: openai.AsyncOpenAI, outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Answer]]:
    """Asks each request alone; returns the answers that were others under load.

    A stream is asked for as a stream: vLLM's parser of tool calls leaves other spaces there.
    """
    alone = [(ask, is_stream, await answer(client, ask, is_stream)) for ask in mixed() for is_stream in (False, True)]
    right = {id(o): next(known for ask, kind, known in alone if (ask, kind) == (o.ask, o.is_stream)) for o in outcomes}
    given = [outcome for outcome in outcomes if outcome.answer is not None]
    return [(o, right[id(o)]) for o in given if not o.answer.is_like(right[id(o)])]  # type: ignore[union-attr]
