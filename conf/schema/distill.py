"""A student that learns a teacher's answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class DistillSpec:
    """Training of the checkpoint, the student, on what the recipe's first model, the teacher, would answer."""

    @property
    def needs_rows(self) -> bool:
        """It always does."""
        return True

    @property
    def needs_answers(self) -> bool:
        """Whether rows must have answers."""
        return False
