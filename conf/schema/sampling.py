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
    top_k: int = 0
    """0 considers every token."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer; they are not part of it."""
    ignore_eos: bool = False
    """Go on to max_tokens whatever the model says. For benchmarks."""

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
        for key, holds, rule in rules:
            if not holds:
                raise UserError(f"sampling.{key} must be {rule}, got {getattr(self, key)}")
