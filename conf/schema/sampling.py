"""How tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import UserError


@dataclass(kw_only=True, slots=True)
class SamplingSpec:
    """vLLM's sampling parameters under their own names."""

    max_tokens: int = 256
    """Tokens that an answer may have."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """The likeliest tokens that together have this probability are considered; 1 considers every token."""
    top_k: int = 0
    """0 considers every token."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are not considered."""
    repetition_penalty: float = 1.0
    """Scores of tokens that prompt or answer have already are divided by it; above 1 repeats less."""
    presence_penalty: float = 0.0
    """Subtracted from the scores of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """Subtracted from them once for each time that the answer has them."""
    seed: int | None = None
    """Makes what is drawn at a temperature above 0 the same in each run; null draws anew."""
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer; they are not part of it."""
    ignore_eos: bool = False
    """Go on to max_tokens whatever the model says. For benchmarks."""
    n: int = 1
    """Answers to each row."""
    logprobs: int | None = None
    """Keep the log-probability of each token of an answer, and of this many likely others; null keeps none."""
    json_schema: str | None = None
    """Answers are JSON of this schema: the schema itself, or a file that holds it."""
    regex: str | None = None
    """Answers match this regular expression."""
    choice: list[str] = field(default_factory=list)
    """Answers are one of these texts."""

    def __post_init__(self) -> None:
        rules = [
            ("max_tokens", self.max_tokens >= 1, ">= 1"),
            ("temperature", 0 <= self.temperature < float("inf"), ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, ">= 0 (0 considers every token)"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "> 0"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "in [-2, 2]"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "in [-2, 2]"),
        ]
        rules += [
            ("n", self.n >= 1, ">= 1"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, ">= 0 or null"),
        ]
        for key, holds, rule in rules:
            if not holds:
                raise UserError(f"sampling.{key} must be {rule}, got {getattr(self, key)}")
        shapes = [key for key in ("json_schema", "regex", "choice") if getattr(self, key)]
        if len(shapes) > 1:
            raise UserError(
                f"at most one of sampling.json_schema, regex and choice can be set, got {' and '.join(shapes)}"
            )
        if self.n > 1 and self.temperature == 0:
            raise UserError(f"sampling.n={self.n} needs sampling.temperature > 0: greedy answers are all the same")

    @property
    def is_deterministic(self) -> bool:
        """Whether an equal request has an equal answer: greedy, or drawn with a seed."""
        return self.temperature == 0 or self.seed is not None
