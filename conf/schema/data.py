"""The table of prompts, and how a row becomes a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from conf.errors import UserError
from conf.schema.task import Task


class DataFormat(Enum):
    """How input files are read; ``auto`` goes by the file's name."""

    auto = "auto"
    parquet = "parquet"
    jsonl = "jsonl"
    csv = "csv"
    openai_batch = "openai_batch"


@dataclass(kw_only=True, slots=True)
class DataSpec:
    """Input and prompt. Exactly one of prompt, prompt_file and messages says what is asked."""

    input: Any = MISSING
    """A file, a folder, a glob, a URI (s3://, gs://, hdfs://, file://), or a list of them."""
    format: DataFormat = DataFormat.auto
    prompt: str | None = None
    """A Jinja template over the row's columns: '{{ question }}'."""
    prompt_file: str | None = None
    """A file that holds the template."""
    system: str | None = None
    """A template for the system message."""
    messages: str | None = None
    """A column of chat messages: a list of {role, content}, or such a list as JSON text."""
    document: str | None = None
    """For task=score, a template for the second text."""
    adapter: str | None = None
    """A column that names each row's LoRA adapter, of model.adapters; null in it is the model alone."""
    max_tokens: str | None = None
    """A column with each row's own limit of answer tokens, of at least 1; null in it is sampling.max_tokens."""
    apply_chat_template: bool | None = None
    """Wrap the prompt in the model's chat template; null does so where the model has one."""
    id: str | None = None
    """A column that names each row; file and position where null."""
    answer: str | None = None
    """A column of expected answers: the summary then gives the share of exact matches."""
    limit: int | None = None
    """Read this many rows at most."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.limit must be >= 1 or null, got {self.limit}")

    def check(self, task: Task) -> None:
        """Checks what needs the composed values.

        Raises:
            UserError: when there is no input, not exactly one source of prompts, or what the task has no use for.
        """
        inputs = self.inputs
        if not inputs or not all(isinstance(uri, str) and uri for uri in inputs):
            raise UserError(f"data.input must be a path, a URI or a list of them, got {self.input!r}")
        if (self.document is not None) != (task is Task.score):
            rule = "must be set" if task is Task.score else "has no use"
            raise UserError(f"data.document, the second text, {rule} with task={task.value}")
        if self.max_tokens is not None and task is not Task.generate:
            raise UserError(f"data.max_tokens has no use with task={task.value}: its answers are no text")
        if self.format is DataFormat.openai_batch:
            own = ("prompt", "prompt_file", "messages", "system", "adapter", "max_tokens", "id", "answer")
            if extra := next((key for key in own if getattr(self, key) is not None), None):
                raise UserError(f"data.{extra} has no use with data.format=openai_batch: each line holds its request")
            return
        named = [k for k in ("prompt", "prompt_file", "messages") if getattr(self, k) is not None]
        if len(named) != 1:
            got = " and ".join(f"data.{k}" for k in named) or "none"
            raise UserError(f"exactly one of data.prompt, data.prompt_file, data.messages must be set, got {got}")
        if self.messages is not None and self.system is not None:
            raise UserError("data.system goes with data.prompt, not with data.messages (put it in the messages)")

    @property
    def inputs(self) -> list[str]:
        """The inputs as a list."""
        return list(self.input) if isinstance(self.input, (list, tuple)) else [self.input]
