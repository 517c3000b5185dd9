"""How a training run goes: lines for who watches, figures for the record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_SMOOTH = 0.95


@dataclass(kw_only=True, slots=True)
class Meter:
    """Counts steps as they are done."""

    steps: int
    """Of the whole run."""
    every_s: float
    """Between two lines."""
    begun: int = 0
    """The step from which this process goes on."""
    quiet: bool = False
    """Write no lines."""
    say: Callable[[str], None]
    """Takes the lines."""
    now: Callable[[], float] = time.monotonic
    loss: float = 0.0
    """Smoothed over about 20 steps."""
    first: float | None = None
    tokens: int = 0
    done: int = 0
    started: float = 0.0
    spoke: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.spoke = self.now()

    def add(self, loss: float, tokens: int) -> None:
        """Counts a step, and writes a line where one is due."""
        self.first = loss if self.first is None else self.first
        self.loss = loss if self.done == 0 else _SMOOTH * self.loss + (1 - _SMOOTH) * loss
        self.tokens += tokens
        self.done += 1
        last = self.begun + self.done == self.steps
        if not self.quiet and (last or self.now() - self.spoke >= self.every_s):
            self.spoke = self.now()
            self.say(self.line())

    def line(self) -> str:
        """Returns a line of progress."""
        seconds = max(1e-9, self.now() - self.started)
        left = (self.steps - self.begun - self.done) * seconds / max(1, self.done)
        return (
            f"step {self.begun + self.done}/{self.steps}, loss {self.loss:.4f},"
            f" {self.tokens / seconds:,.0f} tokens/s, {left:.0f} s left"
        )

    def result(self) -> dict[str, float | int | None]:
        """Returns what goes into the record; tokens and seconds are this process's."""
        return {
            "steps": self.steps,
            "resumed_at": self.begun,
            "loss_first": None if self.first is None else round(self.first, 6),
            "loss_last": round(self.loss, 6),
            "tokens": self.tokens,
            "train_seconds": round(self.now() - self.started, 2),
        }
