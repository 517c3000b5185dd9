"""Leases: of two drivers on one output folder, one works and the other is refused.

Each contender writes a claim of its own, so nothing depends on exclusive creation, which pyarrow's object stores lack.
Whoever's claim is the oldest holds the folder, as long as the heartbeat beside it is written again and again. One that
is killed leaves a heartbeat that stands still: the next contender deletes the claim and takes over, at once where it
sees that the process is gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from pyarrow import fs as pafs

from conf.errors import UserError
from pipelines.ledger.folder import Folder
from pipelines.ledger.outcome import decode, encode
from pipelines.storage import Location

RENEW_S = 5.0
"""Seconds between two renewals."""
EXPIRE_S = 30.0
"""Seconds after which a lease that nobody renews is dead."""
SETTLE_S, LOCAL_SETTLE_S = 2.0, 0.05
"""What passes before a contender looks around: a bucket's clock counts whole seconds, a disk's the kernel's ticks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds, or wants to hold, a folder."""

    run: str
    host: str
    boot: str
    """The machine's boot and the container, so that process numbers of another one are not taken for this one's.

    Empty where the system does not say.
    """
    pid: int
    started: int
    """When the process started, in clock ticks since boot: process numbers are used again."""
    since: float
    """When it came, in seconds since the epoch by its own clock; for people."""

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to have ended; only a process on this machine can be known."""
        if not self.boot or self.boot != _boot():
            return False
        return _process_start(self.pid) != self.started


class Lease:
    """A claim to an output folder. Use as a context manager."""

    def __init__(self, folder: Folder, on_loss: Callable[[], None] | None = None) -> None:
        """Args: the folder, and what is called, in a thread, when another took the lease from this one."""
        self.run = uuid.uuid4().hex[:8]
        """Names this run of the job."""
        self._folder = folder
        self._on_loss = on_loss
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._holder = Holder(
            run=self.run,
            host=socket.gethostname(),
            boot=_boot(),
            pid=os.getpid(),
            started=_process_start(os.getpid()) or 0,
            since=time.time(),
        )
        self._place = lease_file(folder, self.run)

    def __enter__(self) -> Lease:
        """Takes the lease.

        Raises:
            UserError: when another driver holds it.
            OSError: when the folder cannot be written.
        """
        claim = encode(asdict(self._holder))
        self._place.write_bytes(claim)
        try:
            # a file bears the time at which its writing began, a busy disk may show it much later: so it is written
            # again, when everyone can see it
            self._place.write_bytes(claim)
            time.sleep(LOCAL_SETTLE_S if self._folder.root.is_local else SETTLE_S)
            self._contend()
        except BaseException:
            self._place.delete()
            raise
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Gives it back."""
        self._stopped.set()
        self._thread.join()
        self._place.delete()
        _beat_file(self._place).delete()

    def _contend(self) -> None:
        claims = {info.path: info for info in self._folder.leases.list() if info.type == pafs.FileType.File}
        mine = claims[self._place.path]
        now = mine.mtime_ns or 0  # all times are the storage's own: drivers' clocks differ
        for path, claim in claims.items():
            if path == mine.path or claim.extension != "json":
                continue
            place = Location(filesystem=self._folder.root.filesystem, path=path)
            holder = _read(place)
            beat = claims.get(path.removesuffix("json") + "beat", claim)
            is_dead = now - (beat.mtime_ns or 0) > EXPIRE_S * 1e9 or (holder is not None and holder.is_gone)
            if is_dead:
                place.delete()
                _beat_file(place).delete()
            elif (claim.mtime_ns or 0, PurePosixPath(path).stem) < (now, self.run):
                raise UserError(_refusal(self._folder, holder))

    def _renew(self) -> None:
        while not self._stopped.wait(RENEW_S):
            try:
                if not self._place.exists():
                    if self._on_loss is not None:
                        self._on_loss()
                    return
                _beat_file(self._place).write_bytes(b"")
            except OSError:
                continue  # a full disk or a bucket out of reach: the next renewal may succeed


def lease_file(folder: Folder, run: str) -> Location:
    """Returns the file of a run's lease; whoever finds it missing must write no more."""
    return folder.leases.join(f"{run}.json")


def live_holder(folder: Folder) -> Holder | None:
    """Returns who seems to hold a folder now, by this machine's clock."""
    files = {info.path: info for info in folder.leases.list()}
    for path, info in files.items():
        if info.extension == "json":
            holder = _read(Location(filesystem=folder.root.filesystem, path=path))
            beat = files.get(path.removesuffix("json") + "beat", info)
            if holder is not None and not holder.is_gone and time.time() - (beat.mtime_ns or 0) / 1e9 < EXPIRE_S:
                return holder
    return None


def _beat_file(claim: Location) -> Location:
    return Location(filesystem=claim.filesystem, path=claim.path.removesuffix("json") + "beat")


def _read(place: Location) -> Holder | None:
    try:
        return Holder(**decode(place.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _refusal(folder: Folder, holder: Holder | None) -> str:
    who = "another job"
    if holder is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
        who = f"process {holder.pid} on {holder.host}, since {since},"
    return f"output.path={folder.root.path}: {who} is writing here; wait for it to end, or choose another output.path"


def _boot() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> int | None:
    """Returns when a process started; null where there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
