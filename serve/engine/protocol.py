"""The one contract between what asks for tokens and what makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from conf.schema.sampling import SamplingSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt, tokenized."""

    id: str
    """Unique among the requests that an engine holds."""
    token_ids: list[int]
    sampling: SamplingSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """An answer."""

    request_id: str
    text: str
    finish_reason: str
    """``stop`` (the model ended, or a stop text came), ``length`` (out of tokens or context) or ``abort``."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A request that can never be answered."""

    request_id: str
    error: str
    """The class, such as ``prompt_too_long``."""
    message: str


Outcome = Completion | Rejection


@dataclass(kw_only=True, slots=True)
class EngineStats:
    """What an engine has done since it started."""

    start_s: dict[str, float] = field(default_factory=dict)
    """Seconds of its start by part, such as ``import`` and ``load``."""
    max_model_len: int = 0
    """Context in tokens."""
    completions: int = 0
    rejections: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    running: int = 0
    """Requests that it holds now, waiting ones included."""

    def count(self, outcome: Outcome) -> None:
        """Adds one outcome."""
        if isinstance(outcome, Rejection):
            self.rejections += 1
            return
        self.completions += 1
        self.prompt_tokens += outcome.prompt_tokens
        self.completion_tokens += outcome.completion_tokens


class Engine(Protocol):
    """A model that answers. All methods belong to one event loop; `generate` may run many times at once."""

    def generate(self, requests: Iterable[Request]) -> AsyncIterator[Outcome]:
        """Answers requests in the order in which they end; no answer waits for another.

        Closing the iterator aborts what has not ended.

        Raises:
            EngineDead: when the engine can answer nothing any more.
        """
        ...

    async def health(self) -> None:
        """Returns when the engine lives.

        Raises:
            EngineDead: when it does not.
        """
        ...

    def stats(self) -> EngineStats:
        """Returns what the engine has done so far."""
        ...

    async def close(self) -> None:
        """Frees the device. Harmless when called twice."""
        ...
