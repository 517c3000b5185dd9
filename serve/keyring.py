"""The keys of a running service."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from conf.errors import UserError
from serve.keys import Key, Priority, digest, read_keys

OWN_VARIABLE = "MANTA_BATCH_KEY"

_MAX_KEY_BYTES = 512
_NOBODY = digest(b"")
_logger = logging.getLogger(__name__)


def environment_keys(environ: Mapping[str, str], now: datetime) -> list[Key]:
    """Returns the keys of ``MANTA_API_KEYS=KEY,KEY``, hashed: they may travel to replicas, the secrets need not."""
    words = [word.strip() for word in environ.get("MANTA_API_KEYS", "").split(",")]
    return [
        Key(id=f"environment-{number}", name=f"environment-{number}", sha256=digest(word.encode()), created=now)
        for number, word in enumerate(filter(None, words), 1)
    ]


def own_keys(environ: Mapping[str, str], now: datetime) -> list[Key]:
    """Returns the key of the service's own batches, where it has any: ``MANTA_BATCH_KEY`` is set by `manta serve`."""
    secret = environ.get(OWN_VARIABLE)
    if not secret:
        return []
    return [Key(id="batches", name="batches", sha256=digest(secret.encode()), created=now, priority=Priority.batch)]


class KeyRing:
    """Says whose key it is. Reads the file again when it has changed, so that a revoked key is refused at once."""

    def __init__(
        self,
        path: Path,
        fixed: Sequence[Key] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Reads the keys.

        Args:
            path: the key file; it need not be there.
            fixed: keys that no file holds; see `environment_keys`.
            clock: seconds, for how often the file is looked at.
            now: the time of day, for what has expired.

        Raises:
            UserError: when the file cannot be read.
        """
        self._path, self._fixed, self._clock, self._now = path, tuple(fixed), clock, now
        self._seen_at, self._stamp = clock(), _stamp(path)
        self._keys = {key.id: key for key in read_keys(path)}

    def check(self) -> None:
        """Checks that somebody can come in.

        Raises:
            UserError: when there is no key.
        """
        if not self._keys and not self._fixed:
            raise UserError(
                f"there are no API keys in {self._path}: manta keys add NAME makes one, MANTA_API_KEYS=KEY sets one, "
                "access.open=true lets in everybody on this machine"
            )

    def find(self, token: bytes) -> Key | None:
        """Returns whose key ``token`` is, or null for one that is unknown, revoked or expired.

        How long it takes says nothing about how much of a key was right: what is compared is hashes, in constant time.
        """
        self._refresh()
        if len(token) > _MAX_KEY_BYTES:
            return None
        found = digest(token)
        parts = token.split(b"-", 2)
        named = self._keys.get(parts[1].decode("latin-1")) if len(parts) == 3 else None
        known = named if hmac.compare_digest(named.sha256 if named else _NOBODY, found) else None
        for key in self._fixed:
            if hmac.compare_digest(key.sha256, found):
                known = key
        return None if known is None or (known.expires is not None and known.expires <= self._now()) else known

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._seen_at < 1:
            return
        self._seen_at = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except UserError as error:  # a slip in an editor must not lock out everybody
            _logger.error("the keys read before stay: %s", error)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; null where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
