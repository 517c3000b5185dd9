"""What an engine has to do, and what it does: figures for who decides how many there are."""

from __future__ import annotations

from typing import NamedTuple


class Waiting(NamedTuple):
    """Requests whose answer has not begun."""

    requests: int
    prompt_tokens: int


class Unbegun(NamedTuple):
    """Requests whose answer has not begun, by whose turn it is."""

    interactive: int
    batch: int


class Speed(NamedTuple):
    """Of one engine; 0 is not known."""

    prefill_tokens_per_s: float
    """Prompt tokens, where it does nothing else."""
    decode_tokens_per_s: float
    """Answer tokens, where it does nothing else and holds as many sequences as it may."""
