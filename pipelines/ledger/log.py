"""The log of a unit in progress: what engines began and ended, kept before the unit's file can be written.

A line is JSON. ``{"b": [key, ...]}`` began, ``{"x": [key, ...]}`` began with nothing else in the engine, ``{"e": key,
"o": outcome}`` ended, ``{"died": cause}`` is an engine that could say so. Each replica appends to a file of its own, so
nobody waits for a lock; a line cut short by a crash is the last of its file and is passed over. On storage without
appending, a file's parts are written one after another, each whole.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs as pafs

from pipelines.ledger.folder import Folder
from pipelines.ledger.outcome import decode, encode, outcome_of
from pipelines.storage import Location
from serve.engine.protocol import Outcome

SEGMENT_S = 2.0
"""Seconds between two parts of a log on storage without appending: what a crash may cost there."""


class LogWriter:
    """Writes one replica's log of one unit. Used by one thread at a time."""

    def __init__(self, folder: Folder, unit: str, run: str, replica: str) -> None:
        """Args: where, which unit, and who writes; nothing is written before there is something."""
        self._place = folder.log
        self._stem = f"{unit}.{run}.{replica}"
        self._lines: list[bytes] = []
        self._began: list[str] = []
        self._file: int | None = None
        self._written_at, self._is_begun = time.monotonic(), False

    def begin(self, key: str) -> None:
        """Notes that an engine is about to get a request."""
        self._began.append(key)

    def begin_alone(self, keys: Iterable[str]) -> None:
        """Notes that an engine is about to get these requests and no others beside them."""
        self._lines.append(encode({"x": list(keys)}))

    def end(self, key: str, outcome: bytes) -> None:
        """Notes what a request came to: `plain_outcome`, encoded."""
        self._lines.append(b'{"e":"%s","o":%s}' % (key.encode(), outcome))

    def died(self, cause: str) -> None:
        """Notes that the engine has died, and sees to it that this is kept."""
        self._lines.append(encode({"died": cause}))
        self.flush(is_last=True)

    def flush(self, is_last: bool = False) -> None:
        """Hands what was noted to the storage: at once to a local disk, else every `SEGMENT_S` seconds.

        Raises:
            OSError: when it cannot be written, such as on a full disk.
        """
        if not self._lines and not self._began:
            return
        now = time.monotonic()
        # the first part is written at once: what is in an engine from the start is known, should it kill it
        if not (self._place.is_local or is_last or not self._is_begun) and now - self._written_at < SEGMENT_S:
            return
        if self._began:
            self._lines.append(encode({"b": self._began}))
            self._began = []
        data = b"\n".join(self._lines) + b"\n"
        self._lines = []
        self._written_at, self._is_begun = now, True
        if self._place.is_local:
            self._append(data)
        else:
            # by time and not by number: a replica may get a unit again, and begin another log of it
            self._place.join(f"{self._stem}.{time.time_ns():020d}.jsonl").write_bytes(data)

    def close(self) -> None:
        """Writes what is left."""
        try:
            self.flush(is_last=True)
        finally:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is None:
            path = Path(self._place.path)
            path.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path / f"{self._stem}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]


@dataclass(kw_only=True, slots=True)
class History:
    """What the log says of a unit."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By key; see `request_entry` in pipelines/batch/identify.py."""
    attempts: Counter[str] = field(default_factory=Counter)
    """How often a request was in an engine that died."""
    alone: Counter[str] = field(default_factory=Counter)
    """How often it was the only one."""
    killed: set[str] = field(default_factory=set)
    """Requests alone in an engine that died and said so."""
    causes: dict[str, str] = field(default_factory=dict)
    """What the engine last said when it died with the request in it."""


def read_history(folder: Folder, unit: str, run: str) -> History:
    """Reads all logs of a unit.

    A request that began and did not end is suspected of its engine's death where the log says that the engine died, or
    where the log is of this very run: the run lives, so the replica that wrote the log does not. What a former run left
    without a word ended with that run, whose driver was killed.

    Raises:
        OSError: when the storage cannot be read.
    """
    history = History()
    for who, parts in groupby(log_files(folder, [unit]), _who):
        began: dict[str, bool] = {}
        cause = None
        for line in (line for part in parts for line in part.read_bytes().splitlines()):
            try:
                entry = decode(line)
                cause = _take(entry, began, history) or cause
            except (ValueError, TypeError, AttributeError, KeyError):
                continue  # cut short by a crash
        if cause is None and who[1] != run:
            continue
        unended = [key for key in began if key not in history.outcomes]
        for key in unended:
            history.attempts[key] += 1
            is_alone = began[key] and len(unended) == 1
            history.alone[key] += is_alone
            if is_alone and cause is not None:
                history.killed.add(key)
            history.causes[key] = cause or "its process ended without a word"
    return history


def _take(entry: dict[str, Any], began: dict[str, bool], history: History) -> str | None:
    for key in entry.get("b", ()):
        began[key] = False
    alone = entry.get("x", ())
    for key in alone:
        began[key] = len(alone) == 1
    if "e" in entry:
        history.outcomes[entry["e"]] = outcome_of(entry["o"], entry["e"])
    return entry.get("died")


def log_files(folder: Folder, units: Iterable[str]) -> list[Location]:
    """Lists the log files of some units, oldest parts first."""
    wanted = set(units)
    files = [entry.path for entry in folder.log.list() if entry.type == pafs.FileType.File]
    return [
        Location(filesystem=folder.root.filesystem, path=path)
        for path in sorted(files)
        if PurePosixPath(path).name.split(".")[0] in wanted
    ]


def _who(place: Location) -> tuple[str, ...]:
    """Unit, run and replica of a log file: what the parts of a log have in common."""
    return tuple(PurePosixPath(place.path).name.split(".")[:3])


def drop_log(folder: Folder, unit: str) -> None:
    """Deletes a unit's log: its files are written."""
    for place in log_files(folder, [unit]):
        place.delete()
