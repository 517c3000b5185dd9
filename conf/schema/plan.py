"""What `manta plan` looks at and where it writes."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import UserError


@dataclass(kw_only=True, slots=True)
class PlanSpec:
    """A forecast from a sample of the input.

    How long answers are comes from the first of these that there is: max_tokens of rows that all have
    sampling.ignore_eos, answer_column, answer_job, a former record in output.path, data.answer, assumed_fraction.
    """

    sample_rows: int = 2_000
    """Rows that are rendered and tokenized; a smaller input is read whole."""
    sample_s: float = 5.0
    """Seconds after which no further piece of a larger input is read; loading the tokenizer does not count."""
    answer_column: str | None = None
    """A column that says how long answers are: numbers of tokens, or texts, which are tokenized."""
    answer_job: str | None = None
    """A finished job's output folder, or its job.json, whose mean answer is taken."""
    assumed_fraction: float = 0.5
    """Where nothing else says it: the mean answer as a share of sampling.max_tokens."""
    json_file: str | None = None
    """Write the plan as JSON to this file; - prints it in the place of the page, as --json does."""

    def __post_init__(self) -> None:
        if self.sample_rows < 1:
            raise UserError(f"plan.sample_rows must be >= 1, got {self.sample_rows}")
        if not self.sample_s > 0:
            raise UserError(f"plan.sample_s must be > 0, got {self.sample_s}")
        if not 0 < self.assumed_fraction <= 1:
            raise UserError(f"plan.assumed_fraction must be in (0, 1], got {self.assumed_fraction}")
        if self.answer_column is not None and self.answer_job is not None:
            raise UserError("at most one of plan.answer_column and plan.answer_job can be set")
