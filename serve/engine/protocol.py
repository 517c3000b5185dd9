"""The one contract between what asks a model and what answers."""

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
    split: int | None = None
    """Of a pair (task ``score``) the index where the second text begins."""
    adapter: str | None = None
    """The LoRA adapter, of `ModelSpec.adapters`; null is the model alone."""
    forced_from: int | None = None
    """The index from which on the tokens' likelihood is asked for, at least 1; then no answer is wanted. Not every
    engine knows it; see `start.knows_forced`."""
    forced_top: int = 0
    """Of each such place, as many likely tokens too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token with its log-probability (natural logarithm)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """Likely tokens in this place, the likeliest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForcedToken:
    """A token of a given text, with what the model makes of it after all that stand before it."""

    token_id: int
    logprob: float
    """Natural logarithm of the model's own probability: no temperature, no penalties."""
    top: tuple[tuple[int, float], ...] = ()
    """Token ids and logarithms of likely tokens in this place, the likeliest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One of the answers to a request."""

    text: str
    finish_reason: str
    """``stop`` (the model ended, or a stop text came), ``length`` (out of tokens or context) or ``abort``."""
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each token; null where they were not asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What a request for text came to."""

    request_id: str
    samples: tuple[Sample, ...]
    """`SamplingSpec.n` of them."""
    prompt_tokens: int
    cached_tokens: int = field(default=0, compare=False)
    """Of the prompt's, those that the engine's prefix cache held; not part of the answer."""
    forced: tuple[ForcedToken, ...] | None = None
    """One for each token from `Request.forced_from` on; null where they were not asked for."""

    @property
    def text(self) -> str:
        """The first answer."""
        return self.samples[0].text

    @property
    def finish_reason(self) -> str:
        """The first answer's."""
        return self.samples[0].finish_reason

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(sample.completion_tokens for sample in self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """What a request for a vector came to."""

    request_id: str
    vector: bytes
    """float32, little-endian: an embedding, a probability for each class, or one score."""
    prompt_tokens: int
    cached_tokens: int = field(default=0, compare=False)
    """See `Completion`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A request that can never be answered."""

    request_id: str
    error: str
    """The class, such as ``prompt_too_long``."""
    message: str


Outcome = Completion | Pooled | Rejection


@dataclass(kw_only=True, slots=True)
class EngineStats:
    """What an engine has done since it started."""

    start_s: dict[str, float] = field(default_factory=dict)
    """Seconds of its start by part, such as ``import`` and ``load``."""
    max_model_len: int = 0
    """Context in tokens."""
    completions: int = 0
    """Requests that were answered, vectors included."""
    rejections: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache held."""
    completion_tokens: int = 0
    running: int = 0
    """Requests that it holds now, waiting ones included."""
    steps: int = 0
    """Steps in which the engine computed something; the fake takes none."""

    def count(self, outcome: Outcome) -> None:
        """Adds one outcome."""
        if isinstance(outcome, Rejection):
            self.rejections += 1
            return
        self.completions += 1
        self.prompt_tokens += outcome.prompt_tokens
        self.cached_tokens += outcome.cached_tokens
        if isinstance(outcome, Completion):
            self.completion_tokens += outcome.completion_tokens


class Engine(Protocol):
    """A model that answers. All methods belong to one event loop; `generate` may run many times at once."""

    def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        """Answers requests in the order in which they end; no answer waits for another.

        Closing the iterator aborts what has not ended.

        Args:
            requests: taken one by one, as there is room.
            exclusive: wait until the engine holds nothing else, and hold others back until these have ended. What
                kills the engine meanwhile is one of these.

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
