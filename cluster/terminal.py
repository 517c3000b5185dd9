"""Keeps the terminal for the user: what libraries print, from Python or C++, goes to a file of the job. Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Makes a folder that goes with its context; its path is short: Ray's socket paths have 107 characters."""
    folder = tempfile.gettempdir()
    return tempfile.TemporaryDirectory(
        prefix="manta-", dir=folder if len(folder) < 40 else "/tmp", ignore_cleanup_errors=True
    )


@contextmanager
def divert_output(log: Path) -> Iterator[TextIO]:
    """Sends file descriptors 1 and 2 to a file.

    Ray's core writes to them past Python's logging, and its workers inherit them.

    Args:
        log: the file; made with its folder, appended to.

    Yields:
        A stream to where stderr went before.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = {number: os.dup(number) for number in (1, 2)}
    with log.open("ab", buffering=0) as stream, os.fdopen(os.dup(before[2]), "w", buffering=1) as terminal:
        for number in before:
            os.dup2(stream.fileno(), number)
        try:
            yield terminal
        finally:
            for number, saved in before.items():
                with suppress(OSError, ValueError):
                    (sys.stdout if number == 1 else sys.stderr).flush()
                os.dup2(saved, number)
                os.close(saved)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C finishes early and keeps what is done, the second ends at once."""
    interrupted = threading.Event()

    def on_signal(signum: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()  # no more than this: the handler may run in the midst of a print

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
