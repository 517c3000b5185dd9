"""The user's rows as token ids, for steps that calibrate on them or learn from them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import UserError, nearest
from conf.schema.optimize import ExamplesSpec, OptimizeJob
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.prompter import make_prompter
from pipelines.batch.read import read_split
from pipelines.batch.source import open_source
from pipelines.forecast.sample import pieces
from pipelines.optimize.step.task import EXAMPLES
from serve.engine.checkpoint import context_tokens
from serve.engine.errors import RequestRejected
from serve.engine.prompt import load_renderer


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Rows that steps may use."""

    rows: list[dict[str, Any]]
    """``prompt`` and ``answer``, see `EXAMPLES`."""
    left_out: Counter[str]
    """Rows that are of no use, by reason."""

    @property
    def digest(self) -> str:
        """16 hex digits of all that they hold."""
        return hashlib.blake2b(repr(self.rows).encode(), digest_size=8).hexdigest()

    def write(self, path: Path) -> None:
        """Writes them for the steps."""
        pq.write_table(pa.Table.from_pylist(self.rows, schema=EXAMPLES), path)


def read_examples(job: OptimizeJob, config: dict[str, Any], needs_answers: bool) -> Examples:
    """Reads rows spread evenly over the input, as prompts that a batch job would make of them.

    Args:
        job: whose data they are.
        config: the model's config.json.
        needs_answers: whether a row without an answer is of no use.

    Raises:
        UserError: when the input cannot be read, a column is missing, or too few rows can be used.
    """
    job.data.check(Task.generate)
    source = open_source(job.data)
    names, column = source.schema.names, job.data.answer
    if column is not None and column not in names:
        hint = f"{nearest(column, names)} (there are {', '.join(names)})"
        raise UserError(f"data.answer names the column '{column}', which the table lacks{hint}")
    if needs_answers and column is None:
        raise UserError("data.answer must name a column: a step of this recipe learns the answers in it")
    most = min(job.examples.max_tokens, context_tokens(config, None))
    prompter = make_prompter(job.model, job.data, Task.generate, SamplingSpec(), names, most)
    source = source.first(job.data.limit)
    texts: list[str] = []
    answers: list[str | None] = []
    left_out: Counter[str] = Counter()
    for split in pieces(source, job.examples.rows):
        for table in read_split(split, source.schema, source.json_columns, job.data.id):
            for row in table.to_pylist():
                answer = row[column] if column is not None else None
                reason = row[c.ERROR] or ("no answer" if needs_answers and answer is None else None)
                try:
                    text = prompter.ask(row).text if reason is None else None
                except RequestRejected as rejected:
                    reason, text = rejected.error, None
                if text is None:
                    left_out[reason or "token ids"] += 1
                    continue
                texts.append(text)
                answers.append(None if answer is None else str(answer))
    rows = _tokenized(job, texts, answers, most, left_out)[: job.examples.rows]
    _check_enough(rows, left_out, job.examples)
    return Examples(rows=rows, left_out=left_out)


def _tokenized(
    job: OptimizeJob, texts: list[str], answers: list[str | None], most: int, left_out: Counter[str]
) -> list[dict[str, Any]]:
    renderer = load_renderer(job.model, most, job.data.apply_chat_template)
    prompts = renderer.tokens(texts)
    given = [index for index, answer in enumerate(answers) if answer is not None]
    ends = dict(zip(given, renderer.answers([answers[index] or "" for index in given]), strict=True)) if given else {}
    rows = []
    for index, prompt in enumerate(prompts):
        answer = ends.get(index)
        if 0 < len(prompt) + len(answer or ()) <= most:
            rows.append({"prompt": prompt, "answer": answer})
        else:
            left_out["too long"] += 1
    return rows


def _check_enough(rows: list[dict[str, Any]], left_out: Counter[str], spec: ExamplesSpec) -> None:
    if len(rows) < spec.min_rows:
        why = "".join(f", {count} left out: {reason}" for reason, count in left_out.most_common(3))
        raise UserError(
            f"data.input holds {len(rows)} rows that can be used{why}; examples.min_rows={spec.min_rows} are needed"
        )
