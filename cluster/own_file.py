"""Small files of the user's own, which nobody else may write."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from conf.errors import UserError

MAX_BYTES = 1 << 20
"""A longer file is not read."""


def state_folder(environ: Mapping[str, str]) -> Path:
    """Returns where what outlives a command is kept: ``$MANTA_HOME``, else Manta's in the user's folder for state."""
    if home := environ.get("MANTA_HOME"):
        return Path(home).expanduser().absolute()
    return Path(environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser().absolute() / "manta"


def read_own(path: Path) -> bytes | None:
    """Reads a small file that only its owner may write; None where there is none.

    Raises:
        UserError: when it is something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise UserError(f"{path}: must be a file of yours that nobody else may write; remove it")
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES} bytes is no state of Manta's; remove it")
    return data


def write_own(path: Path, data: bytes) -> None:
    """Writes a file that only its owner may read; it changes at once or not at all.

    Raises:
        OSError: when it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
