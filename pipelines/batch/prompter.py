"""From a row to what the model is asked: a table's row through templates, or a line of an OpenAI Batch file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

from conf.errors import UserError
from conf.schema.data import DataFormat, DataSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.openai_request import TASKS, parse_request
from pipelines.batch.read import read_split
from pipelines.batch.source import Source
from pipelines.batch.template import MessageBuilder, read_messages
from serve.engine.errors import RequestRejected
from serve.engine.prompt import PromptRenderer, load_renderer

LOOKED_AT, MOST_ROWS = 100, 10_000
"""First values of which one must hold messages, and rows among which they are looked for."""
MAX_LIMIT = 1 << 31
"""Tokens of an answer: below what engines count with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request, not yet tokenized."""

    text: str | None
    """Null where the user gave token ids."""
    renderer: PromptRenderer
    """What tokenizes it."""
    sampling: SamplingSpec
    token_ids: list[int] | None = None
    pair: str | None = None
    """Of task score, the second text."""
    adapter: str | None = None


class Prompter(Protocol):
    """Makes requests of rows."""

    columns: list[str]
    """The columns that it reads."""

    def ask(self, row: dict[str, Any]) -> Asked:
        """Makes the request of one row.

        Raises:
            RequestRejected: when the row makes none; the class says why.
        """
        ...


class TablePrompter:
    """Requests of a table's rows."""

    def __init__(
        self,
        model: ModelSpec,
        data: DataSpec,
        task: Task,
        sampling: SamplingSpec,
        columns: list[str],
        max_model_len: int,
    ) -> None:
        """Loads the tokenizer and compiles the templates.

        Raises:
            UserError: for a mistake in either.
        """
        # texts that become vectors are not wrapped as a chat, unless it is asked for
        own = data.apply_chat_template
        is_chat = own if task is Task.generate or own is not None else False
        self._renderer = load_renderer(model, max_model_len, is_chat)
        self._builder = MessageBuilder(data, columns)
        self._adapter, self._adapters = data.adapter, model.adapters
        self._sampling, self._limit = sampling, data.max_tokens
        self._limited: dict[int, SamplingSpec] = {}
        self.columns = self._builder.columns

    def ask(self, row: dict[str, Any]) -> Asked:
        """See `Prompter`."""
        adapter = row[self._adapter] if self._adapter is not None else None
        if adapter is not None and adapter not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise RequestRejected("unknown_adapter", f"no adapter '{adapter}' (model.adapters has {known})")
        return Asked(
            text=self._renderer.text(self._builder.messages(row)),
            renderer=self._renderer,
            sampling=self._sampling_of(row),
            pair=self._builder.document(row),
            adapter=adapter,
        )

    def _sampling_of(self, row: dict[str, Any]) -> SamplingSpec:
        value = row[self._limit] if self._limit is not None else None
        if value is None or value == "":  # of CSV, an empty cell
            return self._sampling
        limit = token_limit(value)
        if limit not in self._limited:
            self._limited[limit] = replace(self._sampling, max_tokens=limit)
        return self._limited[limit]


def token_limit(value: Any) -> int:
    """Reads a row's own limit of answer tokens: a whole number, also as text or as a float.

    Raises:
        RequestRejected: when it is none, or below 1.
    """
    text = f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value).strip()
    is_number = text.isascii() and text.isdigit() and len(text) <= 10 and not isinstance(value, bool)
    if not is_number or not 1 <= int(text) < MAX_LIMIT:
        raise RequestRejected("bad_max_tokens", f"data.max_tokens must be a whole number >= 1, got {value!r:.60}")
    return int(text)


class OpenAIPrompter:
    """Requests of the lines of an OpenAI Batch file."""

    columns = ["custom_id", "method", "url", "body"]  # noqa: RUF012

    def __init__(self, model: ModelSpec, task: Task, sampling: SamplingSpec, max_model_len: int) -> None:
        """Loads the tokenizer.

        Raises:
            UserError: when it cannot be loaded.
        """
        self._chat = load_renderer(model, max_model_len, None)
        self._plain = load_renderer(model, max_model_len, False)
        self._task, self._sampling = task, sampling

    def ask(self, row: dict[str, Any]) -> Asked:
        """See `Prompter`."""
        line = {**row, "body": json.loads(row["body"]) if row["body"] is not None else None}
        request = parse_request(line, self._sampling, self._task)
        if request.messages is not None:
            text = self._chat.text(request.messages)
            return Asked(text=text, renderer=self._chat, sampling=request.sampling)
        if isinstance(request.prompt, str):
            return Asked(text=request.prompt, renderer=self._plain, sampling=request.sampling)
        return Asked(text=None, token_ids=request.prompt, renderer=self._plain, sampling=request.sampling)


def make_prompter(
    model: ModelSpec, data: DataSpec, task: Task, sampling: SamplingSpec, columns: list[str], max_model_len: int
) -> Prompter:
    """Returns what makes requests of an input's rows.

    Raises:
        UserError: for a mistake in the model's tokenizer or the data's templates.
    """
    if data.format is DataFormat.openai_batch:
        return OpenAIPrompter(model, task, sampling, max_model_len)
    return TablePrompter(model, data, task, sampling, columns, max_model_len)


def check_urls(source: Source, task: Task) -> None:
    """Checks that the first request that can be read asks for the job's task.

    Raises:
        UserError: when it asks for another.
    """
    for table in read_split(source.splits[0], source.schema, source.json_columns, None):
        for url in table.column("url").to_pylist():
            if url in TASKS:
                if TASKS[url] is not task:
                    raise UserError(
                        f"task={task.value}, but the input's requests go to {url}; set task={TASKS[url].value}"
                    )
                return


def check_messages(source: Source, data: DataSpec) -> None:
    """Checks that a column which is said to hold messages holds some: of other columns every row would fail.

    Raises:
        UserError: when of the first values, `LOOKED_AT` or all, none is messages. Nulls, and what cannot be read, say
            nothing.
    """
    if data.messages is None:
        return
    values = islice(_values(source, data.messages), LOOKED_AT)
    reason = None
    for value in values:
        try:
            read_messages(value)
        except RequestRejected as error:
            reason = reason or (value, error.message)
        else:
            return
    if reason is not None:
        value, message = reason
        shown = repr(value if len(str(value)) <= 60 else f"{str(value)[:60]}...")
        raise UserError(
            f"data.messages names the column '{data.messages}', of whose first values none holds messages: {message}"
            f" ({shown}); a column of texts goes with data.prompt='{{{{ {data.messages} }}}}'"
        )


def _values(source: Source, column: str) -> Iterator[Any]:
    """A column's values of the rows that can be read, without nulls."""
    num_rows = 0
    for split in source.splits:
        try:
            for table in read_split(split, source.schema, source.json_columns, None):
                values, errors = table.column(column).to_pylist(), table.column(c.ERROR).to_pylist()
                yield from (v for v, e in zip(values, errors, strict=True) if v is not None and e is None)
                num_rows += len(table)
                if num_rows >= MOST_ROWS:
                    return
        except (OSError, pa.ArrowException):  # whoever reads it for the job says so
            return
