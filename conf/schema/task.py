"""What is asked of the model."""

from __future__ import annotations

from enum import Enum


class Task(Enum):
    """``generate`` text, ``embed`` a text as a vector, ``classify`` it, or ``score`` how well two texts go together."""

    generate = "generate"
    embed = "embed"
    classify = "classify"
    score = "score"
