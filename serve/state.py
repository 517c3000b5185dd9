"""What is known of services that run: a file for each in a folder of the user's, read by `manta serve status|stop`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from cluster.own_file import read_own, state_folder, write_own
from cluster.process import Process
from conf.errors import UserError
from conf.schema.serve import ServeJob, check_name


class Phase(Enum):
    """How far a service is."""

    starting = "starting"
    ready = "ready"
    updating = "updating"
    draining = "draining"
    failed = "failed"


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


def services_folder(environ: Mapping[str, str]) -> Path:
    """Returns where states are: under ``$MANTA_HOME``, else the user's folder for state."""
    return state_folder(environ) / "services"


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


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except UserError:
        return False
    return True
