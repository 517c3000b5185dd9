"""The folder of a service's batches: contents of files, and where each batch's job writes."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from conf.errors import UserError
from serve.batches.records import Kind, Object, Records

_FILE, _BATCH = "file-", "batch_"
_ID = re.compile(rf"({_FILE}|{_BATCH})[0-9a-f]{{32}}")


class Shelf:
    """Records, and the contents that they speak of. Only the service's user may read them."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        """Opens the folder, or makes it.

        Raises:
            UserError: when it can be neither.
        """
        self.root, self._now = root, now
        try:
            for folder in (root, root / "files", root / "jobs"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.records = Records(root / "records.sqlite")
            (root / "records.sqlite").chmod(0o600)
        except Exception as error:  # sqlite3 has a tree of its own
            raise UserError(f"batches.path={root}: it cannot be used: {error}") from error

    def content(self, name: str) -> Path:
        """Where a file's content is.

        Raises:
            ValueError: for what is no id.
        """
        return self.root / "files" / _checked(name)

    def job(self, name: str) -> Path:
        """The folder where a batch's job writes.

        Raises:
            ValueError: for what is no id.
        """
        return self.root / "jobs" / _checked(name)

    def put(
        self,
        owner: str,
        source: BinaryIO,
        filename: str,
        purpose: str,
        limit: Callable[[int, int], None] | None = None,
        own: str | None = None,
    ) -> Object:
        """Keeps a file, whole or not at all.

        Args:
            owner: who alone may see it.
            source: its content.
            filename: what its owner calls it.
            purpose: OpenAI's word for what it is for.
            limit: see `Records.add`; the bytes are those without this file.
            own: of files with the same words here there is one, the last.

        Raises:
            OSError: when it cannot be written.
        """
        name = new_id(Kind.file) if own is None else _FILE + hashlib.sha256(own.encode()).hexdigest()[:32]
        if own is not None:
            self.drop(owner, name)
        place = self.content(name)
        try:
            with os.fdopen(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())
            value = file_object(name, place.stat().st_size, int(self._now()), filename, purpose)
            self.records.add(Kind.file, owner, value, limit)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        return value

    def drop(self, owner: str, name: str) -> bool:
        """Deletes a file; returns whether it was there."""
        is_there = self.records.remove(Kind.file, owner, name)
        if is_there:
            with suppress(OSError):
                self.content(name).unlink()
        return is_there


def new_id(kind: Kind) -> str:
    """Returns an id that nobody can guess."""
    return f"{_FILE if kind is Kind.file else _BATCH}{secrets.token_hex(16)}"


def file_object(name: str, num_bytes: int, created_at: int, filename: str, purpose: str) -> Object:
    """Returns OpenAI's object of a file. Source: openai.types.FileObject (openai-python 2.x)."""
    return {
        "id": name,
        "object": "file",
        "bytes": num_bytes,
        "created_at": created_at,
        "expires_at": None,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_object(asked: dict[str, Any], created_at: int, window_s: float) -> Object:
    """Returns OpenAI's object of a batch that waits. Source: openai.types.Batch (openai-python 2.x).

    Args:
        asked: ``input_file_id``, ``endpoint``, ``completion_window`` and ``metadata``, checked.
        created_at: seconds since 1970.
        window_s: after this time it expires.
    """
    moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": new_id(Kind.batch),
        "object": "batch",
        **asked,
        "status": "validating",
        "errors": None,
        "output_file_id": None,
        "error_file_id": None,
        "created_at": created_at,
        "expires_at": int(created_at + window_s),
        **{f"{moment}_at": None for moment in moments},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    }


def _checked(name: str) -> str:
    if not _ID.fullmatch(name):
        raise ValueError("no id")
    return name
