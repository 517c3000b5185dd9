"""What a client is told: whole answers and the events of a stream, in OpenAI's shape."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serve.engine.protocol import Completion, TokenLogprob

DONE = b"data: [DONE]\n\n"


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Returns the tokens that were used."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(content: Mapping[str, Any]) -> bytes:
    """Returns an event of a stream."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How the answers to one body look."""

    id: str
    model: str
    is_chat: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Returns a whole answer, of one completion for each prompt."""
        samples = [sample for completion in completions for sample in completion.samples]
        choices = []
        for index, sample in enumerate(samples):
            choice: dict[str, Any] = {"index": index, "finish_reason": sample.finish_reason}
            choice["logprobs"] = None if sample.logprobs is None else self._logprobs(sample.logprobs, 0)
            if self.is_chat:
                choice["message"] = {"role": "assistant", "content": sample.text}
            else:
                choice["text"] = sample.text
            choices.append(choice)
        prompt = sum(completion.prompt_tokens for completion in completions)
        answered = sum(completion.completion_tokens for completion in completions)
        return {**self._head(is_piece=False), "choices": choices, "usage": usage(prompt, answered)}

    def opening(self, index: int) -> bytes:
        """Returns a chat's first event, which says whose turn it is."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return event({**self._head(is_piece=True), "choices": [choice]})

    def piece(
        self, index: int, text: str, places: Sequence[TokenLogprob] | None, offset: int, finish_reason: str | None
    ) -> bytes:
        """Returns what a token added to an answer.

        Args:
            index: of the answer.
            text: what is new.
            places: the new tokens' log-probabilities; null where they were not asked for.
            offset: characters of the answer before it.
            finish_reason: where it is the last one.
        """
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason}
        choice["logprobs"] = None if places is None else self._logprobs(places, offset)
        if self.is_chat:
            choice["delta"] = {"content": text}
        else:
            choice["text"] = text
        return event({**self._head(is_piece=True), "choices": [choice]})

    def used(self, prompt: int, completion: int) -> bytes:
        """Returns the event with the tokens that were used."""
        return event({**self._head(is_piece=True), "choices": [], "usage": usage(prompt, completion)})

    def _head(self, is_piece: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.is_chat:
            kind = "chat.completion.chunk" if is_piece else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, places: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        if self.is_chat:
            return {
                "content": [
                    {
                        **_place(place.token, place.logprob),
                        "top_logprobs": [_place(token, logprob) for token, logprob in place.top],
                    }
                    for place in places
                ]
            }
        offsets = []
        for place in places:
            offsets.append(offset)
            offset += len(place.token)
        return {
            "tokens": [place.token for place in places],
            "token_logprobs": [place.logprob for place in places],
            "top_logprobs": [{place.token: place.logprob, **dict(place.top)} for place in places],
            "text_offset": offsets,
        }


def _place(token: str, logprob: float) -> dict[str, Any]:
    # JSON has no infinity; OpenAI's own floor
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": list(token.encode("utf-8", "replace"))}
