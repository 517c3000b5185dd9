"""A sample of the input, spread over it: rendered and tokenized as the job would."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

from conf.errors import UserError, nearest
from conf.schema.plan import PlanSpec
from pipelines.batch import columns as c
from pipelines.batch.identify import identify, row_sampling
from pipelines.batch.plan import Plan
from pipelines.batch.read import read_split
from pipelines.batch.source import Source, Split
from serve.engine.prompt import load_renderer

CHUNK_ROWS = 512
"""Rows that are tokenized at a time; the clock is looked at between."""


@dataclass(kw_only=True, slots=True)
class Sample:
    """What was looked at."""

    total_rows: int
    """Of the whole input."""
    rows: int = 0
    prompts: list[list[int]] = field(default_factory=list)
    """Token ids of the rows that make a request; so are the other lists."""
    keys: list[str] = field(default_factory=list)
    shares: int = 0
    """Requests that may share the answer of an equal one."""
    max_tokens: list[int] = field(default_factory=list)
    is_open: bool = False
    """Whether some answer may end before its max_tokens."""
    answers: list[int] | None = None
    """Tokens of an answer, of a column; null without one. Rows where it is null are left out."""
    bad: Counter[str] = field(default_factory=Counter)
    """Rows by class of error."""

    @property
    def is_whole(self) -> bool:
        """Whether every row was looked at."""
        return self.rows >= self.total_rows


def take_sample(plan: Plan, spec: PlanSpec, clock: Callable[[], float] = time.monotonic) -> Sample:
    """Reads evenly spread pieces of the input until there are rows enough, or time is up; a small input is read whole.

    Args:
        plan: the job.
        spec: how much to read, and which column holds answers.
        clock: seconds.

    Raises:
        UserError: when the column is not there.
    """
    names = plan.source.schema.names
    column = spec.answer_column
    if column is not None and column not in names:
        hint = f"{nearest(column, names)} (there are {', '.join(names)})"
        raise UserError(f"plan.answer_column names the column '{column}', which the table lacks{hint}")
    column = column or plan.job.data.answer
    sample = Sample(total_rows=plan.source.rows, answers=None if column is None else [])
    is_small = plan.source.rows <= spec.sample_rows
    ends: float | None = None
    for table in _chunks(plan, pieces(plan.source, spec.sample_rows)):
        _add(sample, identify(table, plan.identity), plan, column)
        # what the first chunk took is the loading of the tokenizer
        ends = clock() + spec.sample_s if ends is None else ends
        if clock() >= ends and not is_small:
            break
    return sample


def pieces(source: Source, rows: int) -> list[Split]:
    """Returns splits that together hold about ``rows`` records, spread evenly; all where there are no more.

    They are in an order in which any number of first ones is spread too. Of a file that cannot be entered in the
    middle (CSV, compressed text) it is the beginning.
    """
    splits = source.splits
    if source.rows <= rows:
        return splits
    typical = source.rows / len(splits)
    count = min(len(splits), max(1, math.ceil(rows / min(typical, 64))))
    each = math.ceil(rows / count)
    chosen = [splits[int((index + 0.5) * len(splits) / count)] for index in range(count)]
    chosen = [replace(split, rows=min(split.rows, each)) for split in chosen]
    golden = (math.sqrt(5) - 1) / 2
    order = sorted(range(count), key=lambda index: index * golden % 1.0)
    return [chosen[index] for index in order]


def _chunks(plan: Plan, splits: list[Split]) -> Iterator[pa.Table]:
    rest: list[pa.Table] = []
    for split in splits:
        source = plan.source
        for table in read_split(split, source.schema, source.json_columns, plan.job.data.id):
            rest.append(table)
            if sum(map(len, rest)) >= CHUNK_ROWS:
                yield pa.concat_tables(rest)
                rest = []
    if rest:
        yield pa.concat_tables(rest)


def _add(sample: Sample, table: pa.Table, plan: Plan, column: str | None) -> None:
    sample.rows += len(table)
    errors = table.column(c.ERROR).to_pylist()
    sample.bad.update(error for error in errors if error is not None)
    kept = table.filter(pa.array([error is None for error in errors], pa.bool_()))
    keys = kept.column(c.REQUEST_KEY).to_pylist()
    sample.prompts += kept.column(c.TOKENS).to_pylist()
    sample.keys += keys
    sample.shares += sum(key == entry for key, entry in zip(keys, kept.column(c.ENTRY).to_pylist(), strict=True))
    own = kept.column(c.SAMPLING).to_pylist()
    sampling = {text: row_sampling(text, plan.job.sampling) for text in set(own)}
    sample.max_tokens += [sampling[text].max_tokens for text in own]
    sample.is_open |= not all(spec.ignore_eos and not spec.stop for spec in sampling.values())
    if column is not None and sample.answers is not None:
        sample.answers += _answer_tokens(kept.column(column), plan)


def _answer_tokens(column: pa.ChunkedArray, plan: Plan) -> list[int]:
    """Tokens of a column's values: numbers are counts, all else is text."""
    values = [value for value in column.to_pylist() if value is not None]
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return [max(0, round(value)) for value in values]
    # special tokens are added: the one before a text stands for the one that ends an answer
    renderer = load_renderer(plan.identity.model, plan.identity.max_model_len, False)
    return [len(tokens) for tokens in renderer.tokens([str(value) for value in values])]
