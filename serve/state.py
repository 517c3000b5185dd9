"""What is known of services that run: a file for each in a folder of the user's, read by `manta serve status|stop`."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from conf.errors import UserError
from conf.schema.serve import ServeJob, check_name

MAX_BYTES = 1 << 20
"""A longer file is not read."""


class Phase(Enum):
    """How far a service is."""

    starting = "starting"
    ready = "ready"
    updating = "updating"
    draining = "draining"
    failed = "failed"


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


class Outcome(Enum):
    """What became of an update."""

    running = "running"
    done = "done"
    refused = "refused"
    """The user's mistake; nothing has changed."""
    failed = "failed"


@dataclass(kw_only=True, slots=True)
class UpdateReport:
    """How the last update goes."""

    id: str
    outcome: Outcome
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Replicas:
    """How many there are."""

    running: int
    wanted: int


@dataclass(kw_only=True, slots=True)
class ServiceState:
    """A service as its own process describes it."""

    process: Process
    since: str
    """When it began, in UTC."""
    url: str
    """Without /v1."""
    logs: str
    phase: Phase
    job: ServeJob
    """What it runs; its paths are absolute."""
    message: str = ""
    """Why it failed."""
    update: UpdateReport | None = None
    replicas: Replicas | None = None
    """As they were seen last."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.job.deployment.name


@dataclass(kw_only=True, slots=True)
class Post:
    """Where a service says how it stands."""

    folder: Path
    state: ServiceState

    def tell(self, phase: Phase, message: str = "") -> None:
        """Writes the phase."""
        self.state.phase, self.state.message = phase, message
        write_state(self.folder, self.state)

    def close(self) -> None:
        """Removes the state."""
        remove_state(self.folder, self.state.name)


def this_process() -> Process:
    """Returns who asks."""
    return Process(
        host=socket.gethostname(), boot_id=_boot_id(), pid=os.getpid(), started_ticks=_ticks(os.getpid()) or 0
    )


def services_folder(environ: Mapping[str, str]) -> Path:
    """Returns where states are: under ``$MANTA_HOME``, else the user's folder for state."""
    if home := environ.get("MANTA_HOME"):
        return Path(home).expanduser().absolute() / "services"
    return Path(environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser().absolute() / "manta" / "services"


def state_names(folder: Path) -> list[str]:
    """Returns the names of services that left a state here, dead ones too."""
    names = (path.name.removesuffix(".state.json") for path in folder.glob("*.state.json"))
    return sorted(name for name in names if _is_name(name))


def read_state(folder: Path, name: str) -> ServiceState | None:
    """Reads the state of a service; None where there is none.

    Raises:
        UserError: for a name that is none, or a file that is broken, somebody else's, or may be written by others.
    """
    check_name(name)
    data = read_own(folder / f"{name}.state.json")
    if data is None:
        return None
    try:
        state = msgspec.json.decode(data, type=ServiceState)
    except (msgspec.DecodeError, ValueError, RecursionError):
        state = None
    if state is None or state.name != name or state.process.pid < 1:
        raise UserError(f"{folder / name}.state.json: not the state of a service '{name}'; remove it")
    return state


def write_state(folder: Path, state: ServiceState) -> None:
    """Writes a state; it changes at once or not at all."""
    write_own(folder / f"{state.name}.state.json", msgspec.json.encode(state))


def remove_state(folder: Path, name: str) -> None:
    """Forgets a service, and what was handed to it."""
    for kind in ("state", "job", "update"):
        (folder / f"{name}.{kind}.json").unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[None]:
    """Keeps other services of this name off, as long as the process lives.

    Raises:
        UserError: when one runs, or the folder cannot be used.
    """
    check_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise UserError(f"{folder}: must be yours, and nobody else may write there (chmod 700)")
        lock = os.open(folder / f"{name}.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used for the state of services: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"deployment.name={name}: a service of this name runs: manta serve status {name} shows it,"
                f" manta serve stop {name} ends it, deployment.detach=true updates it"
            ) from None
        yield
    finally:
        os.close(lock)


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
        raise UserError(f"{path}: more than {MAX_BYTES} bytes is no state of a service; remove it")
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


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except UserError:
        return False
    return True


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
