"""Clusters that `manta cluster up` started on this machine: where each is and its token, in a folder of the user's."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cluster.own_file import read_own, state_folder, write_own
from cluster.process import Process
from conf.errors import UserError, nearest
from conf.schema.cluster import ClusterSpec, check_cluster_name

RECORD, TOKEN = "cluster.json", "token"
UP = "manta cluster up starts one"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobsApi:
    """Where jobs are submitted: Ray's dashboard."""

    url: str
    """Without a path: ``http://host:port``."""
    token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownCluster:
    """A cluster with its own folder, which it leaves with."""

    name: str
    gcs_address: str
    """``host:port``, where drivers and nodes join it."""
    jobs_url: str
    """Of Ray's dashboard: ``http://127.0.0.1:port``."""
    token: str = field(repr=False)
    folder: Path
    processes: tuple[Process, ...] = ()
    """Of its nodes, the head first: the leaders of sessions of their own."""
    scratch: Path | None = None
    """Where Ray keeps its sockets, logs and spilled objects."""
    is_ready: bool = True
    """Whether all nodes had come when it was written; before, only manta cluster down knows it."""
    most_cpus: int = 0
    """CPUs that it counts once all nodes that may come have come."""

    @property
    def is_alive(self) -> bool:
        """Whether its head runs."""
        return bool(self.processes) and self.processes[0].is_alive

    @property
    def jobs(self) -> JobsApi:
        """Where jobs are submitted to it."""
        return JobsApi(url=self.jobs_url, token=self.token)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What is written of a cluster; its token stands in a file of its own."""

    gcs_address: str
    jobs_url: str
    processes: tuple[Process, ...]
    scratch: str | None
    is_ready: bool
    most_cpus: int


def clusters_folder(environ: Mapping[str, str]) -> Path:
    """Returns where clusters are known: ``$MANTA_CLUSTERS``, else below ``$MANTA_HOME`` or the user's state folder."""
    if own := environ.get("MANTA_CLUSTERS"):
        return Path(own).expanduser().absolute()
    return state_folder(environ) / "clusters"


def write(cluster: KnownCluster) -> None:
    """Writes what is known of a cluster; only the user may read it.

    Raises:
        UserError: when the folder is not the user's alone.
    """
    cluster.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = cluster.folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(f"{cluster.folder}: must be yours, and nobody else may write there (chmod 700)")
    record = _Record(
        gcs_address=cluster.gcs_address,
        jobs_url=cluster.jobs_url,
        processes=cluster.processes,
        scratch=None if cluster.scratch is None else str(cluster.scratch),
        is_ready=cluster.is_ready,
        most_cpus=cluster.most_cpus,
    )
    write_own(cluster.folder / TOKEN, cluster.token.encode())
    write_own(cluster.folder / RECORD, msgspec.json.encode(record))


def read(name: str, environ: Mapping[str, str] = os.environ) -> KnownCluster | None:
    """Reads what is known of a cluster, alive or dead; None where nothing is.

    Raises:
        UserError: for a name that is none, or files that are broken, somebody else's, or may be written by others.
    """
    check_cluster_name(name)
    folder = clusters_folder(environ) / name
    data, token = read_own(folder / RECORD), read_own(folder / TOKEN)
    if data is None:
        return None
    try:
        record = msgspec.json.decode(data, type=_Record)
    except (msgspec.DecodeError, ValueError, RecursionError):
        record = None
    if record is None or not token or any(process.pid < 1 for process in record.processes):
        raise UserError(f"{folder}: not the folder of a cluster '{name}'; remove it")
    return KnownCluster(
        name=name,
        gcs_address=record.gcs_address,
        jobs_url=record.jobs_url,
        token=token.decode(errors="replace"),
        folder=folder,
        processes=record.processes,
        scratch=None if record.scratch is None else Path(record.scratch),
        is_ready=record.is_ready,
        most_cpus=record.most_cpus,
    )


def names(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the names of clusters that left something here, dead ones too."""
    return sorted(path.parent.name for path in clusters_folder(environ).glob(f"*/{RECORD}"))


def find(name: str | None, environ: Mapping[str, str] = os.environ) -> KnownCluster:
    """Finds a cluster that runs.

    Args:
        name: its name; null is the only one that runs.
        environ: says where clusters are known.

    Raises:
        UserError: when it does not run, or, without a name, none or several do; names what exists.
    """
    there = names(environ)
    if name is not None:
        cluster = read(name, environ)
        if cluster is None:
            hint = f"{nearest(name, there)} (there are {', '.join(there)})" if there else f" ({UP})"
            raise UserError(f"cluster.name={name}: no such cluster on this machine{hint}")
        if not cluster.is_alive:
            raise UserError(
                f"cluster.name={name}: its head has ended: manta cluster down cluster.name={name} cleans up"
            )
        if not cluster.is_ready:
            raise UserError(f"cluster.name={name}: is not ready yet: manta cluster status {name}")
        return cluster
    known = [cluster for each in there if (cluster := read(each, environ)) is not None]
    alive = [cluster for cluster in known if cluster.is_alive and cluster.is_ready]
    if not alive:
        raise UserError(f"cluster.name: no cluster runs on this machine ({UP})")
    if len(alive) > 1:
        raise UserError(f"cluster.name must say which: there are {', '.join(each.name for each in alive)}")
    return alive[0]


@contextmanager
def claimed(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Keeps other starts and ends of this user's clusters off.

    Raises:
        UserError: when one is at work, or the folder cannot be used.
    """
    folder = clusters_folder(environ)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used for what is known of clusters: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError("another manta cluster up or down is at work: try again when it is done") from None
    finally:
        os.close(lock)


def forget(name: str, environ: Mapping[str, str] = os.environ) -> None:
    """Removes what is known of a cluster; nothing where nothing is."""
    check_cluster_name(name)
    shutil.rmtree(clusters_folder(environ) / name, ignore_errors=True)


def jobs_api(spec: ClusterSpec, environ: Mapping[str, str] = os.environ) -> JobsApi:
    """Returns where a job for a cluster is submitted: at cluster.jobs_url, else at a cluster of this machine.

    Raises:
        UserError: when there is no such cluster, or the token of one elsewhere is not in the environment.
    """
    if spec.jobs_url is None:
        return find(spec.name, environ).jobs
    token = environ.get("MANTA_CLUSTER_TOKEN") or environ.get("RAY_AUTH_TOKEN")
    if not token:
        raise UserError(f"cluster.jobs_url={spec.jobs_url}: set MANTA_CLUSTER_TOKEN to that cluster's token")
    parts = urlsplit(spec.jobs_url)
    return JobsApi(url=f"{parts.scheme}://{parts.netloc}", token=token)
