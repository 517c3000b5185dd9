"""How long the answers will be, and how that is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from conf.errors import UserError
from conf.schema.task import Task
from pipelines.batch.plan import Plan
from pipelines.forecast.sample import Sample

ASSUMED_ERROR = 0.5
"""What an assumption may be wrong by, as a share of it."""
JOB_ERROR = 0.1
"""What another job's mean may be wrong by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Tokens of an answer."""

    mean: float
    longest: float
    source: str
    """Where the figures come from, for a person."""
    error_fraction: float
    """What the mean may be wrong by, as a share of it."""
    cut_fraction: float | None = None
    """Answers that are longer than they may be; null where that is not known."""
    values: tuple[int, ...] = ()
    """Of single rows, where they are known."""


def answer_lengths(plan: Plan, sample: Sample) -> Answers:
    """Decides how long answers are; see `PlanSpec` for the order of the sources.

    Raises:
        UserError: when plan.answer_job holds no finished job.
    """
    spec, data = plan.job.plan, plan.job.data
    if plan.job.task is not Task.generate:
        return Answers(mean=0, longest=0, source=f"none with task={plan.job.task.value}", error_fraction=0)
    n = plan.job.sampling.n
    if sample.max_tokens and not sample.is_open:
        return of_column(sample.max_tokens, sample.max_tokens, "max_tokens, since ignore_eos is set", n)
    if spec.answer_column is not None and sample.answers:
        return of_column(sample.answers, sample.max_tokens, f"the column '{spec.answer_column}'", n)
    most = fmean(sample.max_tokens) if sample.max_tokens else plan.job.sampling.max_tokens
    if spec.answer_job is not None:
        return _of_job(read_job(spec.answer_job), spec.answer_job, most)
    former = plan.output.root.join("_manta", "job.json")
    if plan.job.output.path is not None and former.exists():
        try:
            return _of_job(json.loads(former.read_bytes()), former.path, most)
        except (OSError, ValueError, UserError):
            pass  # a job that has ended without an answer says nothing
    if sample.answers:
        return of_column(sample.answers, sample.max_tokens, f"the column '{data.answer}'", n)
    source = f"assumed: plan.assumed_fraction={spec.assumed_fraction:g} of max_tokens ({most:,.0f} on average)"
    mean = spec.assumed_fraction * most * n
    return Answers(mean=mean, longest=most, source=source, error_fraction=ASSUMED_ERROR)


def of_column(values: Sequence[int], max_tokens: Sequence[int], source: str, n: int = 1) -> Answers:
    """Returns what lengths of the sample say; answers end at max_tokens."""
    most = max(max_tokens, default=0)
    kept = [min(value, most) for value in values]
    mean = fmean(kept)
    error = 1.28 * pstdev(kept) / math.sqrt(len(kept)) / mean if mean else 0.0
    return Answers(
        mean=mean * n,
        longest=max(kept),
        source=source,
        error_fraction=error,
        cut_fraction=sum(value > most for value in values) / len(values),
        values=tuple(kept),
    )


def read_job(path: str) -> dict[str, Any]:
    """Reads the record of a finished job: its output folder, or the file itself.

    Raises:
        UserError: when it cannot be read.
    """
    place = Path(path).expanduser()
    place = place / "_manta" / "job.json" if place.is_dir() else place
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"plan.answer_job={path}: no record of a finished job: {error}") from error


def _of_job(record: dict[str, Any], path: str, most: float) -> Answers:
    answers, tokens = record.get("answers") or 0, record.get("completion_tokens") or 0
    if not answers or not tokens:
        raise UserError(f"plan.answer_job={path}: that job has no answers")
    return Answers(
        mean=tokens / answers,
        longest=min(most, 3 * tokens / answers),
        source=f"the mean of {answers:,} answers in {path}",
        error_fraction=JOB_ERROR,
        cut_fraction=(record.get("truncated") or 0) / answers,
    )
