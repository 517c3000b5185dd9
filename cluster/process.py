"""A process of this machine, told from one that has its number later."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A process, told from one that has its number later."""

    host: str
    boot_id: str
    """Of the start of this machine's kernel."""
    pid: int
    started_ticks: int
    """Clock ticks from the kernel's start to the process's."""

    @property
    def is_here(self) -> bool:
        """Whether this machine could see it."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it runs on this machine."""
        return self.is_here and self.boot_id == _boot_id() and _ticks(self.pid) == self.started_ticks

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal to this process and to no other; returns whether it was alive."""
        with self._watched() as descriptor:
            if descriptor is None:
                return False
            signal.pidfd_send_signal(descriptor, number)
            return True

    def wait(self, timeout_s: float) -> bool:
        """Returns whether it has ended within that time."""
        with self._watched() as descriptor:
            if descriptor is None:
                return True
            watch = select.poll()
            watch.register(descriptor, select.POLLIN)
            return bool(watch.poll(timeout_s * 1000))

    @property
    def session(self) -> list[Process]:
        """What runs in the session that this process leads or led, itself included."""
        if not self.is_here or self.boot_id != _boot_id():
            return []
        ticks = _ticks(self.pid)
        if ticks is not None and ticks != self.started_ticks:
            return []  # somebody else's: no new process gets the number of a session that still has members
        found = []
        for process in running():
            with suppress(OSError):
                if os.getsid(process.pid) == self.pid:
                    found.append(process)
        return found

    @property
    def environment(self) -> bytes:
        """What it was started with, of a process of one's own: NAME=VALUE, each ended by a zero."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/environ").read_bytes()
        return b""

    def has(self, name: str, value: str) -> bool:
        """Whether it was started with a variable of that value."""
        return f"{name}={value}".encode() in self.environment.split(b"\0")

    @contextmanager
    def _watched(self) -> Iterator[int | None]:
        """A descriptor that stays with the process, whoever gets its number; None where it has ended."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            yield None
            return
        try:
            yield descriptor if self.is_alive else None
        finally:
            os.close(descriptor)


def kill_all(find: Callable[[], list[Process]], limit_s: float) -> list[Process]:
    """Kills what is found until nothing is found any more; returns what is left when the time is over.

    Args:
        find: looks again; what is killed may have started others meanwhile.
        limit_s: seconds that this may take.
    """
    deadline = time.monotonic() + limit_s
    while (left := find()) and time.monotonic() <= deadline:
        for process in left:
            process.send(signal.SIGKILL)
        for process in left:
            process.wait(POLL_S)
    return left


def running() -> Iterator[Process]:
    """Yields this machine's processes that run."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (process := process_of(int(path.name))).started_ticks:
            yield process


def this_process() -> Process:
    """Returns who asks."""
    return process_of(os.getpid())


def process_of(pid: int) -> Process:
    """Returns the process of this machine that has a number now; one that has ended is not alive."""
    return Process(host=socket.gethostname(), boot_id=_boot_id(), pid=pid, started_ticks=_ticks(pid) or 0)


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _ticks(pid: int) -> int | None:
    """When a process began; None where there is none, or only its exit code is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # the program's name stands in parentheses and may hold anything
    words = re.sub(r"^.*\)", "", text, flags=re.DOTALL).split()
    return None if words[0] in ("Z", "X") else int(words[19])
