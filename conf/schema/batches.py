"""Batches over HTTP: files that clients send, and jobs that are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import UserError


@dataclass(kw_only=True, slots=True)
class BatchesSpec:
    """/v1/files and /v1/batches, as OpenAI's clients use them."""

    path: str | None = None
    """A folder for files, answers and what is known of them; all replicas must see it. Null: there are no batches."""
    max_file_bytes: int = 200 << 20
    """A longer file is refused."""
    max_lines: int = 50_000
    """A file with more requests is no batch."""
    max_bytes_per_key: int = 10 << 30
    """What the files of one API key may take together, answers included; more is refused until some are deleted."""
    max_open_per_key: int = 64
    """Batches of one API key that are not at their end; one more is refused."""
    max_running: int = 1
    """Batches that run at a time; the others wait, the oldest first."""
    max_window_s: float = 7 * 86400.0
    """The longest completion window that a batch may ask for."""
    max_upload_s: float = 600.0
    """Seconds that a file may take to arrive."""

    def __post_init__(self) -> None:
        if self.path is not None and not self.path:
            raise UserError("batches.path must be a folder or null, got ''")
        for key in ("max_file_bytes", "max_lines", "max_bytes_per_key", "max_open_per_key", "max_running"):
            if getattr(self, key) < 1:
                raise UserError(f"batches.{key} must be >= 1, got {getattr(self, key)}")
        for key in ("max_window_s", "max_upload_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise UserError(f"batches.{key} must be > 0 and finite, got {getattr(self, key)}")
