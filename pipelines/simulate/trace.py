"""Arrivals and lengths from a file: Azure's CSV, Mooncake's JSONL, or columns of that meaning."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import UserError

ARRIVAL = {"arrival_s": 1.0, "arrival": 1.0, "timestamp_ms": 1e-3, "timestamp": 1e-3, "TIMESTAMP": 1.0}
"""Names of the arrival's column, and the seconds of its unit. Mooncake's `timestamp` counts milliseconds."""
PROMPT = ("prompt_tokens", "input_length", "ContextTokens", "input_tokens", "in")
ANSWER = ("answer_tokens", "completion_tokens", "output_length", "GeneratedTokens", "output_tokens", "out")
MAX_TOKENS = 100_000_000
MAX_SECONDS = 10 * 366 * 86400.0
"""Of a trace; more is a wrong unit."""
MAX_CELL_CHARS = 131_072


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Requests in the order of their arrival."""

    arrival_s: np.ndarray
    """Seconds from the first, float64, never falling."""
    prompt: np.ndarray
    """Tokens, int64, 1 at least."""
    answer: np.ndarray
    """Tokens, int64, 1 at least."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrival_s[-1]) if len(self) else 0.0


def read_trace(path: str, max_requests: int | None = None) -> Trace:
    """Reads a trace.

    Args:
        path: a file that ends in .csv, .jsonl or .parquet.
        max_requests: only the first so many that arrive; null is all.

    Raises:
        UserError: for a file that cannot be read, lacks a column, or holds what is no time or no length; one line.
    """
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    file = Path(path).expanduser()
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"trace={path}: must end in {', '.join(readers)}")
    try:
        columns = reader(path, file)
    except OSError as error:
        raise UserError(f"trace={path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"trace={path}: is not UTF-8 text (byte {error.start})") from error
    return _trace(path, columns, max_requests)


def replayed(trace: Trace, copies: int, jitter_s: float, speed_up: float, seed: int) -> Trace:
    """Returns a trace with each request so many times, arriving so many times as fast.

    Args:
        trace: what is replayed.
        copies: of each request; the first arrives when the original does.
        jitter_s: the others arrive up to so much earlier or later, after the speed-up.
        speed_up: factor.
        seed: of the draws.
    """
    arrival = np.tile(trace.arrival_s / speed_up, copies)
    drawn = np.random.default_rng(seed).uniform(-jitter_s, jitter_s, len(arrival))
    drawn[: len(trace)] = 0
    arrival = np.clip(arrival + drawn, 0, trace.seconds / speed_up)
    return _sorted(arrival, np.tile(trace.prompt, copies), np.tile(trace.answer, copies))


def _sorted(arrival: np.ndarray, prompt: np.ndarray, answer: np.ndarray) -> Trace:
    order = np.argsort(arrival, kind="stable")
    arrival = arrival[order]
    return Trace(arrival_s=arrival - arrival[:1].sum(), prompt=prompt[order], answer=answer[order])


def _csv(path: str, file: Path) -> dict[str, list[Any]]:
    csv.field_size_limit(MAX_CELL_CHARS)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines)
        try:
            names = [name.strip() for name in next(rows, [])]
            wanted = _wanted(path, names)
            places = [names.index(name) for name in wanted]
            columns: dict[str, list[Any]] = {name: [] for name in wanted}
            lists = list(columns.values())
            for row in rows:
                if not row:
                    continue
                if len(row) <= max(places):
                    raise UserError(f"trace={path}: line {rows.line_num} has {len(row)} cells of {len(names)}")
                for cells, place in zip(lists, places, strict=True):
                    cells.append(row[place])
        except csv.Error as error:
            raise UserError(f"trace={path}: line {rows.line_num} is not CSV: {error}") from error
    return columns


def _jsonl(path: str, file: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    with file.open(encoding="utf-8-sig") as lines:
        for number, row in _json_rows(path, lines):
            if not columns:
                columns = {name: [] for name in _wanted(path, list(row))}
            for name, cells in columns.items():
                if name not in row:
                    raise UserError(f"trace={path}: line {number} has no '{name}'")
                cells.append(row[name])
    return columns


def _json_rows(path: str, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"trace={path}: line {number} is not JSON") from error
        if not isinstance(row, dict):
            raise UserError(f"trace={path}: line {number} must be an object, got {type(row).__name__}")
        yield number, row


def _parquet(path: str, file: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
        wanted = _wanted(path, names)
        table = pq.read_table(file, columns=list(wanted))
        return {name: table.column(name).to_pylist() for name in wanted}
    except pa.ArrowException as error:
        raise UserError(f"trace={path}: is not Parquet: {str(error).splitlines()[0]}") from error


def _wanted(path: str, names: list[str]) -> tuple[str, str, str]:
    found = []
    for kinds in (ARRIVAL, PROMPT, ANSWER):
        name = next((kind for kind in kinds if kind in names), None)
        if name is None:
            shown = ", ".join(repr(name) for name in names[:8])[:200]
            raise UserError(f"trace={path}: needs a column {next(iter(kinds))} (or {', '.join(kinds)}), has {shown}")
        found.append(name)
    return found[0], found[1], found[2]


def _trace(path: str, columns: dict[str, list[Any]], max_requests: int | None) -> Trace:
    if not columns or not next(iter(columns.values())):
        raise UserError(f"trace={path}: holds no request")
    (when, times), (ins, prompts), (outs, answers) = columns.items()
    arrival = _times(path, when, times)
    trace = _sorted(arrival, _lengths(path, ins, prompts), _lengths(path, outs, answers))
    if trace.seconds > MAX_SECONDS:
        raise UserError(f"trace={path}: '{when}' spans {trace.seconds / 86400:,.0f} days: in seconds, or dates?")
    if max_requests is None:
        return trace
    return Trace(
        arrival_s=trace.arrival_s[:max_requests],
        prompt=trace.prompt[:max_requests],
        answer=trace.answer[:max_requests],
    )


def _times(path: str, name: str, cells: list[Any]) -> np.ndarray:
    try:
        seconds = np.array([_number(cell) for cell in cells]) * ARRIVAL[name]
    except (TypeError, ValueError, OverflowError):
        seconds = np.array([_date(path, name, at, cell) for at, cell in enumerate(cells)])
    if not np.isfinite(seconds).all():
        at = int(np.flatnonzero(~np.isfinite(seconds))[0])
        raise UserError(f"trace={path}: request {at + 1}: '{name}' must be a finite time, got {_shown(cells[at])}")
    return seconds


def _number(cell: Any) -> float:
    if isinstance(cell, bool):
        raise TypeError
    return float(cell)


def _date(path: str, name: str, at: int, cell: Any) -> float:
    text = str(cell).strip().removesuffix("Z").removesuffix("+00:00")
    try:
        # numpy would take a bare number for a year
        return float(np.datetime64(text, "ns").astype("int64")) / 1e9 if "-" in text[1:] else float("nan")
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"trace={path}: request {at + 1}: '{name}' must be seconds or a date in UTC, got {_shown(cell)}"
        ) from error


def _lengths(path: str, name: str, cells: list[Any]) -> np.ndarray:
    lengths = np.empty(len(cells), dtype=np.int64)
    for at, cell in enumerate(cells):
        try:
            value = _number(cell)
        except (TypeError, ValueError, OverflowError):
            value = -1.0
        if not 0 <= value <= MAX_TOKENS:
            rule = f"a number of tokens, 0 to {MAX_TOKENS:,}"
            raise UserError(f"trace={path}: request {at + 1}: '{name}' must be {rule}, got {_shown(cell)}")
        lengths[at] = max(1, round(value))
    return lengths


def _shown(cell: Any) -> str:
    return repr(cell)[:60]
