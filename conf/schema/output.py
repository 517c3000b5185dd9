"""Where the answers go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from conf.errors import UserError


class OutputFormat(Enum):
    """How answers are written."""

    parquet = "parquet"
    jsonl = "jsonl"


@dataclass(kw_only=True, slots=True)
class OutputSpec:
    """A folder of part files."""

    path: str | None = None
    """A folder or URI, made where it is missing; null is out/MODEL-TIME under the current folder."""
    format: OutputFormat = OutputFormat.parquet
    rows_per_file: int = 10_000
    """Rows that a part file holds at most."""
    prefix: str = ""
    """Put before the names of the columns that Manta adds, where the input has such a column already."""
    overwrite: bool = False
    """Delete a former job's files in this folder first; without it such a folder is refused."""

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            raise UserError(f"output.rows_per_file must be >= 1, got {self.rows_per_file}")
