"""Where the answers go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from conf.errors import UserError


class OutputFormat(Enum):
    """How answers are written; ``auto`` is the OpenAI Batch shape where the input has it, else Parquet."""

    auto = "auto"
    parquet = "parquet"
    jsonl = "jsonl"
    openai_batch = "openai_batch"


class OnChange(Enum):
    """What is done where the folder's job had another model, prompt or sampling."""

    refuse = "refuse"
    recompute = "recompute"


@dataclass(kw_only=True, slots=True)
class OutputSpec:
    """A folder of part files, and the ledger of what is done. The same command run again goes on where it ended."""

    path: str | None = None
    """A folder or URI, made where it is missing; null is out/MODEL-TIME under the current folder."""
    format: OutputFormat = OutputFormat.auto
    rows_per_file: int = 10_000
    """Rows that a part file holds at most; a job keeps what it began with."""
    prefix: str = ""
    """Put before the names of the columns that Manta adds, where the input has such a column already."""
    on_change: OnChange = OnChange.refuse
    """Where this folder's job had another model, prompt or sampling: refuse, or compute its rows again."""
    overwrite: bool = False
    """Delete a former job's files in this folder first, instead of going on with it."""

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            raise UserError(f"output.rows_per_file must be >= 1, got {self.rows_per_file}")
