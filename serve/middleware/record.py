"""One line of JSON for each request, beside the logs that Ray Serve keeps of a replica, without text of a prompt."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

import msgspec

MAX_BYTES, NUM_FILES = 64 << 20, 4
"""Of a replica's file, and how many are kept before the oldest one goes."""


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
    """Appends records to a file, which is replaced when it is full."""

    def __init__(self, path: Path) -> None:
        """Opens the file with its first record.

        Args:
            path: its folder is there.
        """
        self._handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=NUM_FILES - 1, delay=True)

    def write(self, record: Record) -> None:
        """Appends a line. A full disk is reported by logging, and costs no request."""
        line = msgspec.json.encode(record).decode()
        self._handler.handle(logging.LogRecord("manta", logging.INFO, "", 0, line, None, None))
