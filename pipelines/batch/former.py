"""What a unit's former part files hold: answers that need not be paid for again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema.task import Task
from pipelines.batch.answers import answer_names, former_outcomes
from pipelines.batch.openai_part import read_answer, read_letter
from pipelines.ledger.folder import SUFFIXES, Folder
from pipelines.storage import Location
from serve.engine.protocol import Outcome, Rejection

FINAL_ERRORS = frozenset({"engine_killer"})
"""Errors that are not tried again when a unit is done again: each trial costs an engine."""


@dataclass(kw_only=True, slots=True)
class Former:
    """Outcomes of former part files."""

    rows: list[tuple[str, Outcome]] = field(default_factory=list)
    """Request key and outcome of answered rows, in the order of the input."""
    failed: set[int] = field(default_factory=set)
    """Positions of the dead letters."""
    by_row: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    """Outcomes by request key and row id."""
    by_key: dict[str, Outcome] = field(default_factory=dict)
    """Outcomes by request key, those of `FINAL_ERRORS` included."""

    def outcome(self, entry: str, key: str, row_id: str) -> Outcome | None:
        """Returns the outcome of an unchanged request: of this very row, or where equal requests share, of any."""
        if (own := self.by_row.get((key, row_id))) is not None:
            return own
        known = self.by_key.get(key)
        return known if ":" not in entry or isinstance(known, Rejection) else None  # a killer kills whoever asks it


def read_former(folder: Folder, unit: str, prefix: str, task: Task) -> Former:
    """Reads a unit's part files; what is not there, or cannot be read any more, holds nothing."""
    former = Former()
    for suffix in SUFFIXES:  # a job that is computed again may write another format
        for row_id, key, outcome in _answers(replace(folder, suffix=suffix).answers(unit), suffix, prefix, task):
            former.rows.append((key, outcome))
            former.by_row[key, row_id] = outcome
            former.by_key[key] = outcome
        letters = read_letters(replace(folder, suffix=suffix), unit)
        former.failed.update(letter["position"] for letter in letters if letter.get("position") is not None)
        former.by_key.update(_killers(letters))
    return former


def answered(folder: Folder, unit: str, prefix: str, task: Task) -> Iterator[tuple[str, Outcome]]:
    """Yields request keys and outcomes of a unit's part files, for who needs no more: those of `Former.by_key`."""
    for suffix in SUFFIXES:
        own = replace(folder, suffix=suffix)
        yield from ((key, outcome) for _, key, outcome in _answers(own.answers(unit), suffix, prefix, task))
        yield from _killers(read_letters(own, unit))


def _killers(letters: list[dict[str, Any]]) -> Iterator[tuple[str, Outcome]]:
    for letter in letters:
        if letter.get("error") in FINAL_ERRORS and letter.get("request_key"):
            yield letter["request_key"], Rejection(request_id="", error=letter["error"], message=letter["message"])


def _answers(place: Location, suffix: str, prefix: str, task: Task) -> Iterator[tuple[str, str, Outcome]]:
    lines = _read_lines(place) if suffix == "jsonl" else []
    if _is_openai(lines):
        for line in lines:
            with suppress(KeyError, TypeError, ValueError):
                yield read_answer(line)
        return
    first, ids, keys = prefix + answer_names(task)[0], prefix + "row_id", prefix + "request_key"
    table = _table(lines, first) if suffix == "jsonl" else _read_parquet(place, first)
    if table is not None and {first, ids, keys} <= set(table.column_names):
        columns = (table.column(name).to_pylist() for name in (ids, keys))
        yield from zip(*columns, former_outcomes(table, prefix, task), strict=True)


def read_letters(folder: Folder, unit: str) -> list[dict[str, Any]]:
    """Reads a unit's dead letters, as rows of `commit.FAILED_SCHEMA`."""
    place = folder.failed(unit)
    if folder.suffix == "parquet":
        table = _read_parquet(place)
        return [] if table is None else table.to_pylist()
    lines = _read_lines(place)
    if not _is_openai(lines):
        return lines
    letters = []
    for line in lines:
        with suppress(KeyError, TypeError, ValueError):
            letters.append(read_letter(line))
    return letters


def _is_openai(lines: list[dict[str, Any]]) -> bool:
    return any("custom_id" in line and "response" in line for line in lines)


def _read_parquet(place: Location, first: str | None = None) -> pa.Table | None:
    """Reads a part file, or its columns from ``first`` on; null where it is missing or broken."""
    try:
        file = pq.ParquetFile(io.BytesIO(place.read_bytes()))
        names = file.schema_arrow.names
        # of the user's columns before ours one may have the name of one of ours: then there is no telling them apart
        is_plain = first in names and len(set(names)) == len(names)
        return file.read(names[names.index(first) :] if is_plain else None)
    except (OSError, ValueError, pa.ArrowException):
        return None


def _read_lines(place: Location) -> list[dict[str, Any]]:
    """Reads a part file's lines; passes over those that are broken."""
    lines = []
    with suppress(OSError):
        for line in place.read_bytes().splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def _table(lines: list[dict[str, Any]], first: str) -> pa.Table | None:
    """Makes a table of the columns from ``first`` on: those before are the user's, and may hold what Arrow cannot."""
    if not lines or first not in lines[0]:
        return None
    names = list(lines[0])
    ours = names[names.index(first) :]
    return pa.Table.from_pylist([{name: line.get(name) for name in ours} for line in lines])
