"""What a step is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema.step import StepSpec

EXAMPLES = pa.schema([("prompt", pa.list_(pa.int32())), ("answer", pa.list_(pa.int32()))])
"""Token ids of a row: its prompt as the engine sees it, and the expected answer with its end; null without one."""


class StepFailed(Exception):
    """The step cannot do what was asked, and its message says why: the user's matter, no fault of ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A row to calibrate on or to learn from."""

    prompt: list[int]
    answer: list[int] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTask:
    """One step to do. Pickles: it is run in a process, and where needed an environment, of its own."""

    spec: StepSpec
    source: Path
    """The checkpoint that it starts from: config.json, *.safetensors, tokenizer."""
    teacher: Path
    """The recipe's first model, untouched."""
    target: Path
    """An empty folder for what it makes: a whole checkpoint, tokenizer included."""
    examples: Path | None
    """A Parquet file of `EXAMPLES`; null where the step needs no rows."""
    seed: int
    progress: Path | None = None
    """A file for lines that the user is to see meanwhile."""

    def taught(self) -> StepTask:
        """Returns the task with the teacher that its step names, where it names one."""
        lesson = self.spec.lesson
        if lesson is None or lesson.teacher is None:
            return self
        return replace(self, teacher=Path(lesson.teacher).expanduser())

    def say(self, line: str) -> None:
        """Shows a line to the user."""
        if self.progress is not None:
            with self.progress.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def read_examples(self) -> list[Example]:
        """Returns the rows.

        Raises:
            StepFailed: when there are none.
        """
        if self.examples is None:
            raise StepFailed(f"{self.spec.kind.value} needs rows: set data.input")
        rows: list[dict[str, Any]] = pq.read_table(self.examples).to_pylist()
        return [Example(prompt=row["prompt"], answer=row["answer"]) for row in rows]
