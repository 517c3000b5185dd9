"""Fewer weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class PruneSpec:
    """Weights set to zero, or layers, heads and channels left out."""

    @property
    def needs_rows(self) -> bool:
        """Whether what goes is chosen by the user's rows."""
        return False
