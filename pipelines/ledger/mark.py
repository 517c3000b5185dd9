"""Done-marks: one small file for each unit that is written, written last."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipelines.ledger.folder import Folder
from pipelines.ledger.outcome import decode, encode

READERS = 16
"""Threads that read marks: from a bucket, each takes tens of milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """What became of a unit: a range of records of one input file."""

    unit: str
    fingerprint: str
    """Of the records; another one means that they have changed."""
    run: str
    """The run that wrote it."""
    answers: int
    failed: int
    answers_bytes: int
    """Size of the part file; 0 where there is none. A file of another size is not whole."""
    failed_bytes: int
    prompt_tokens: int = 0
    """Over its answers, as they say."""
    completion_tokens: int = 0
    requests: int = 0
    """Requests that engines answered or rejected for it in the run that wrote it."""
    engine_prompt_tokens: int = 0
    """Of those requests."""
    engine_completion_tokens: int = 0
    replayed: int = 0
    """Rows whose answers were found in the log or in a former part file."""
    shared: int = 0
    """Rows whose answers are those of an equal request."""
    saved_tokens: int = 0
    """Prompt and completion tokens that the shared ones did not cost."""
    truncated: int = 0
    matches: int = 0
    prompt_lengths: list[int] = field(default_factory=list)
    """Answers by the length of their prompt; see `lengths.count_lengths`."""
    completion_lengths: list[int] = field(default_factory=list)
    """Answers by their own length."""
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Rows, and an example's message, for each class of error."""

    def write(self, folder: Folder) -> None:
        """Writes the mark: from now on the unit is done."""
        folder.mark(self.unit).write_bytes(encode(asdict(self)))

    def is_whole(self, folder: Folder, sizes: dict[str, int]) -> bool:
        """Whether the files that it speaks of are there, in the sizes that it names."""
        wanted = ((folder.answers(self.unit), self.answers_bytes), (folder.failed(self.unit), self.failed_bytes))
        return all(sizes.get(folder.name(place), 0) == size for place, size in wanted)


_FIELDS = {f.name for f in fields(Mark)}


def read_mark(folder: Folder, unit: str) -> Mark | None:
    """Reads a unit's mark; null where there is none, or none that can be read."""
    try:
        return mark_of(decode(folder.mark(unit).read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def read_marks(folder: Folder, units: Iterable[str]) -> dict[str, Mark]:
    """Reads the marks of many units."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda unit: read_mark(folder, unit), units)
        return {mark.unit: mark for mark in found if mark is not None}


def mark_of(plain: dict[str, Any]) -> Mark:
    """Returns a mark from what JSON held.

    Raises:
        TypeError: when something is missing.
        ValueError: when its errors cannot be understood.
    """
    known = {name: value for name, value in plain.items() if name in _FIELDS}
    known["errors"] = {name: (rows, message) for name, (rows, message) in known.get("errors", {}).items()}
    return Mark(**known)
