"""Another format, for machines without vLLM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ExportSpec:
    """A file that another runtime reads."""

    @property
    def needs_rows(self) -> bool:
        """Whether the user's rows are needed."""
        return False
