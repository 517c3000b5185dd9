"""API keys at rest."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

import msgspec

from conf.errors import UserError, nearest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Priority(Enum):
    """Whose requests an engine takes first: ``interactive`` before ``batch``."""

    interactive = "interactive"
    batch = "batch"

    @property
    def number(self) -> int:
        """vLLM's ``priority``: lower is sooner."""
        return 0 if self is Priority.interactive else 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a key may use; null is without limit."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_min", "tokens_per_min", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")

    def over(self, defaults: Limits) -> Limits:
        """Returns these limits, with ``defaults`` where there is none."""
        return Limits(
            requests_per_min=self.requests_per_min or defaults.requests_per_min,
            tokens_per_min=self.tokens_per_min or defaults.tokens_per_min,
            max_concurrent=self.max_concurrent or defaults.max_concurrent,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as it is stored: without its secret."""

    id: str
    name: str
    """Appears in metrics and logs."""
    sha256: str
    """Of the whole key, as hexadecimal text."""
    created: datetime
    expires: datetime | None = None
    priority: Priority = Priority.interactive
    limits: Limits = Limits()


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyFile:
    """What the file holds."""

    version: int = 1
    keys: tuple[Key, ...] = ()


def digest(key: bytes) -> str:
    """Returns the hash under which a key is stored.

    One SHA-256, without salt and without a slow function: a key has 256 random bits, so nobody can try them all or look
    them up in a table. Slow hashes are for passwords, which people choose, and would cost each request milliseconds.
    """
    return hashlib.sha256(key).hexdigest()


def keys_path(keys_file: str | None, environ: Mapping[str, str]) -> Path:
    """Returns where the keys are: ``access.keys_file``, else under ``$MANTA_HOME``, else the user's configuration."""
    if keys_file:
        return Path(keys_file).expanduser()
    if home := environ.get("MANTA_HOME"):
        return Path(home).expanduser() / "keys.json"
    return Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "manta" / "keys.json"


def read_keys(path: Path) -> tuple[Key, ...]:
    """Reads a key file; one that is not there has no keys.

    Raises:
        UserError: when it cannot be read, holds something else, or may be written by others.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{path}: others may write to it, and so add keys; chmod 600 mends it")
    try:
        return msgspec.json.decode(data, type=KeyFile).keys
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no key file of manta keys: {error}") from error


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Writes a key file that only its owner may read; it changes at once or not at all.

    Raises:
        OSError: when it cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(KeyFile(keys=tuple(keys))), indent=1)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def make_key(name: str, limits: Limits, priority: Priority, expires: datetime | None, now: datetime) -> tuple[str, Key]:
    """Makes a key.

    Returns:
        The secret, which is stored nowhere, and what is stored.

    Raises:
        UserError: for a name that is no word.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"a key's name is a word of up to 64 letters, digits, '.', '_' and '-', got '{name}'")
    key_id = secrets.token_hex(4)
    secret = f"manta-{key_id}-{secrets.token_urlsafe(32)}"
    key = Key(
        id=key_id,
        name=name,
        sha256=digest(secret.encode()),
        created=now,
        expires=expires,
        priority=priority,
        limits=limits,
    )
    return secret, key


def add_key(path: Path, secret_and_key: tuple[str, Key]) -> str:
    """Stores a key and returns its secret.

    Raises:
        UserError: when a key of this name is there already, or the file cannot be read.
    """
    secret, key = secret_and_key
    with _locked(path):
        keys = read_keys(path)
        if any(key.name == other.name for other in keys):
            raise UserError(f"there is a key '{key.name}' already; manta keys revoke {key.name} removes it")
        write_keys(path, [*keys, key])
    return secret


def revoke_key(path: Path, word: str) -> Key:
    """Removes the key of this name or id, and returns it.

    Raises:
        UserError: when there is none.
    """
    with _locked(path):
        keys = read_keys(path)
        gone = next((key for key in keys if key.name == word), None) or next((k for k in keys if k.id == word), None)
        if gone is None:
            names = [key.name for key in keys]
            raise UserError(f"no key '{word}'{nearest(word, names)} (there are {', '.join(names) or 'none'})")
        write_keys(path, [key for key in keys if key is not gone])
    return gone


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps two commands from losing each other's change."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        os.close(lock)
