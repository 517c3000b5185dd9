"""What a job came to: the record in OUT/_manta/job.json and the summary on the screen."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.answers import PREFIX
from pipelines.batch.attribution import Share, attribute, in_words, plain_shares, total
from pipelines.batch.commit import SHOWN_ROWS
from pipelines.batch.cost import cost_of
from pipelines.batch.letters import examples
from pipelines.batch.monitor import JobState
from pipelines.batch.plan import Plan
from pipelines.batch.progress import duration
from pipelines.batch.record import plain, versions
from pipelines.batch.report.page import build_page
from pipelines.batch.resume import Work
from pipelines.batch.timeline import Timeline
from pipelines.ledger.lengths import add_lengths
from pipelines.ledger.mark import Mark, mark_of

FAILED_EXAMPLES = 3
"""Failed rows that the report shows of each class of error."""


@dataclass(kw_only=True, slots=True)
class Totals:
    """Counts over units."""

    answers: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    matches: int = 0
    requests: int = 0
    engine_prompt_tokens: int = 0
    engine_completion_tokens: int = 0
    replayed: int = 0
    shared: int = 0
    saved_tokens: int = 0
    prompt_lengths: list[int] = field(default_factory=list)
    """See `Mark`."""
    completion_lengths: list[int] = field(default_factory=list)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Rows and an example's message for each class of error."""

    @property
    def rows(self) -> int:
        """Rows that have an answer or an error."""
        return self.answers + self.failed

    @classmethod
    def of(cls, marks: Iterable[Mark]) -> Totals:
        """Adds up units."""
        totals = cls()
        for mark in marks:
            for count in fields(cls):
                mine, others = getattr(totals, count.name), getattr(mark, count.name)
                if count.name != "errors":
                    is_histogram = count.name.endswith("_lengths")
                    setattr(totals, count.name, add_lengths(mine, others) if is_histogram else mine + others)
            for error, (rows, message) in mark.errors.items():
                before, example = totals.errors.get(error, (0, message))
                totals.errors[error] = (before + rows, example)
        return totals


@dataclass(kw_only=True, slots=True)
class Written:
    """What this run has written."""

    marks: dict[str, Mark] = field(default_factory=dict)
    """By unit: a unit that Ray did twice counts once."""
    sample: list[dict[str, Any]] = field(default_factory=list)
    """The first answers, by file and position."""

    def add(self, committed: dict[str, Any]) -> None:
        """Adds one unit; see `commit.COMMITTED`."""
        self.marks[committed["unit"]] = mark_of(json.loads(committed["mark"]))
        rows = [*self.sample, *json.loads(committed["sample"])]
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
    work: Work
    written: Written
    state: JobState
    seconds: Seconds
    run: str
    timeline: Timeline | None = None
    """Null where there was nothing to do."""
    is_interrupted: bool = False
    shares: list[Share] = field(init=False)
    """Where the time of each engine went."""

    def __post_init__(self) -> None:
        self.shares = attribute(self.timeline) if self.timeline is not None else []

    @property
    def totals(self) -> Totals:
        """Counts over all units, those of former runs included."""
        return Totals.of([*self.work.done, *self.written.marks.values()])

    @property
    def exit_code(self) -> int:
        """130 interrupted, 3 when rows failed, else 0."""
        return 130 if self.is_interrupted else 3 if self.totals.failed else 0

    @property
    def cost(self) -> float | None:
        """What this run's engines cost; null where the price is not known, or nothing was to be done."""
        return None if self.timeline is None else cost_of(self.plan, self.timeline.num_replicas, self.shares)

    def record(self) -> dict[str, Any]:
        """Returns what job.json holds."""
        t, s, state = self.totals, self.seconds, self.state
        now = Totals.of(self.written.marks.values())
        return {
            "job": plain(self.plan.job),
            "run": self.run,
            "model_fingerprint": self.plan.identity.model_fingerprint,
            "inputs": _inputs(self.plan),
            "rows": self.plan.source.rows,
            "answers": t.answers,
            "failed": t.failed,
            "unfinished": max(self.plan.source.rows - t.rows, 0),
            "done_before": self.work.done_rows,
            "replayed": now.replayed,
            "shared": now.shared,
            "saved_tokens": now.saved_tokens,
            "requests": now.requests,
            "errors": {name: {"rows": rows, "example": message} for name, (rows, message) in t.errors.items()},
            "prompt_tokens": t.prompt_tokens,
            "completion_tokens": t.completion_tokens,
            "prompt_lengths": t.prompt_lengths,
            "completion_lengths": t.completion_lengths,
            "truncated": t.truncated,
            "exact_match": t.matches / t.answers if self._has_matches else None,
            "seconds": asdict(s),
            "replica_seconds": plain_shares(self.shares),
            "cost": self.cost,
            "rows_per_s": now.rows / s.inference if s.inference else None,
            "prompt_tokens_per_s": now.engine_prompt_tokens / s.inference if s.inference else None,
            "completion_tokens_per_s": now.engine_completion_tokens / s.inference if s.inference else None,
            "prefix_hit_rate": state.prefix_hit_rate,
            "engine_start_s": self._engine_starts(),
            "engine_restarts": state.restarts,
            "engine_deaths": state.deaths,
            "interrupted": self.is_interrupted,
            "versions": versions(),
        }

    def _engine_starts(self) -> list[dict[str, float]]:
        """Seconds of each engine's start: from the cluster to its process, and then what the engine says."""
        connected = self.timeline.began_at if self.timeline else 0.0
        reports = self.state.replicas.values()
        return [{"process": max(report.began_at - connected, 0.0), **report.engine.start_s} for report in reports]

    @property
    def _has_matches(self) -> bool:
        """Whether answers are words, there are some, and the table says what they should be."""
        has_words = self.plan.job.task not in (Task.embed, Task.score)
        return has_words and self.plan.job.data.answer is not None and self.totals.answers > 0

    def text(self) -> str:
        """Returns the summary as a person reads it."""
        t, s, plan = self.totals, self.seconds, self.plan
        now = Totals.of(self.written.marks.values())
        suffix = plan.output.suffix
        where = plan.output.root.path
        took = duration(s.total)
        kept = f"interrupted after {took}; what was finished is kept, {plan.again}"
        lines = [f"manta batch: {kept if self.is_interrupted else f'done in {took}'}", ""]
        before = f"   {self.work.done_rows:,} of them done before" if self.work.done_rows else ""
        lines.append(f"  rows         {plan.source.rows:>9,}{before}")
        lines.append(f"  answers      {t.answers:>9,}   {where}/part-*.{suffix}")
        lines.append(f"  failed       {t.failed:>9,}" + (f"   {where}/failed/part-*.{suffix}" if t.failed else ""))
        for error, (rows, message) in sorted(t.errors.items(), key=lambda item: -item[1][0]):
            lines.append(f"    {error:<18} {rows:>6,}   {short(message, 90)}")
        if (unfinished := plan.source.rows - t.rows) > 0:
            lines.append(f"  unfinished   {unfinished:>9,}")
        if now.replayed:
            lines.append(f"  replayed     {now.replayed:>9,}   rows whose answers were paid for before")
        if now.shared:
            lines.append(
                f"  shared       {now.shared:>9,}   rows with the answer of an equal request: {now.requests:,}"
                f" requests ran, {now.saved_tokens:,} tokens saved"
            )
        if self._has_matches:
            lines.append(f"  exact match  {t.matches / t.answers:>9.4f}   {t.matches:,} of {t.answers:,} answers")
        if t.truncated:
            lines.append(f"  cut off      {t.truncated:>9,}   answers that ran out of tokens (sampling.max_tokens)")
        if self.written.marks:
            lines += self._speed(now)
        if (cost := self.cost) is not None:
            lines.append(f"  cost         {cost:>9,.4g}   {plan.job.cluster.price_per_hour:g} an hour for each device")
        if self.state.restarts:
            lines.append(f"  replaced     {self.state.restarts:>9,}   dead engines")
        lines.append(f"  record       {where}/_manta/job.json, logs beside it")
        lines.append(f"  report       {where}/_manta/report.html")
        return "\n".join(lines)

    def _speed(self, now: Totals) -> list[str]:
        s, tokens_in, tokens_out = self.seconds, now.engine_prompt_tokens, now.engine_completion_tokens
        rate = s.inference or 1.0
        cached = f" ({self.state.prefix_hit_rate:.1%} of the prompts cached)" if self.state.prefix_hit_rate else ""
        return [
            f"  tokens       {tokens_in:>9,} in ({tokens_in / rate:,.0f}/s), "
            f"{tokens_out:,} out ({tokens_out / rate:,.0f}/s), "
            f"{now.rows / rate:,.1f} rows/s{cached}",
            f"  time         {s.plan:.1f} s look, {s.cluster:.1f} s Ray, {s.engines:.1f} s engines, "
            f"{s.inference:.1f} s inference, {s.total:.1f} s in all",
            f"  engine time  {in_words(total(self.shares))}",
        ]

    def page(self, record: dict[str, Any]) -> str:
        """Returns the record for a person to look at: HTML."""
        rows = [
            {
                "source": row[c.SOURCE],
                "position": row[c.POSITION],
                "input": {name: value for name, value in row.items() if not name.startswith(c.MARK)},
                "answer": {n.removeprefix(PREFIX): value for n, value in row.items() if n.startswith(PREFIX)},
            }
            for row in self.written.sample[: self.plan.job.progress.show_rows]
        ]
        marks = [*self.work.done, *self.written.marks.values()]
        failed = examples(self.plan.output, marks, FAILED_EXAMPLES)
        return build_page(record, self.timeline, self.shares, rows, failed)

    def first_rows(self) -> str:
        """Returns the first answers that this run has written."""
        shown = []
        for row in self.written.sample[: self.plan.job.progress.show_rows]:
            shown.append(f"  {row[c.SOURCE]}:{row[c.POSITION]}")
            for name, value in row.items():
                if name.startswith(PREFIX):
                    shown.append(f"    {'-> ' + name.removeprefix(PREFIX):<10} {short(str(value), 150)}")
                elif not name.startswith(c.MARK):
                    shown.append(f"    {name:<10} {short(str(value), 150)}")
        return "\n".join(shown)


def _inputs(plan: Plan) -> list[dict[str, Any]]:
    """The files in the order in which they were read: with the row ids it restores the order of rows."""
    rows: dict[tuple[str, str], int] = {}
    for split in plan.source.splits:
        key = (split.name, split.file_id)
        rows[key] = rows.get(key, 0) + split.rows
    return [{"name": name, "row_id_prefix": file_id, "rows": count} for (name, file_id), count in rows.items()]


def short(text: str, width: int) -> str:
    """Returns text on one line, cut to a width."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
