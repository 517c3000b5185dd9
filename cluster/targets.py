"""Where Prometheus finds clusters that manta has started on this machine: a small file each, gone with its cluster.

Ray tells of its nodes only where its dashboard runs, and a cluster of one job has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.own_file import state_folder

JOB = "ray"
"""What Prometheus calls them; Ray's own file says the same."""


def targets_folder(environ: Mapping[str, str]) -> Path:
    """Returns where the files are: under ``$MANTA_HOME``, else the user's folder for state."""
    return state_folder(environ) / "metrics"


@contextmanager
def announced(folder: Path) -> Iterator[None]:
    """Tells of the nodes of the cluster that this process has joined. A folder that cannot be written costs no job.

    Args:
        folder: see `targets_folder`; made where it is missing. Files of processes that died without a word are deleted.
    """
    place = folder / f"{os.getpid()}.json"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _forget_dead(folder)
        unfinished = place.with_suffix(".tmp")  # Prometheus reads a file the moment that it changes
        unfinished.write_text(json.dumps([{"targets": node_addresses(), "labels": {"job": JOB}}]))
        unfinished.replace(place)
    try:
        yield
    finally:
        with suppress(OSError):
            place.unlink(missing_ok=True)


def announce_cluster(folder: Path, name: str, listing: Path) -> None:
    """Tells of a cluster that outlives this process, until it is withdrawn.

    Args:
        folder: see `targets_folder`; made where it is missing. Where it cannot be written nothing is told.
        name: of the cluster.
        listing: Ray's own list of its nodes, which Ray keeps up to date as they come and go.
    """
    place = _place(folder, name)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _forget_dead(folder)
        place.unlink(missing_ok=True)
        place.symlink_to(listing)


def withdraw_cluster(folder: Path, name: str) -> None:
    """Tells no more of a cluster."""
    with suppress(OSError):
        _place(folder, name).unlink(missing_ok=True)


def node_addresses() -> list[str]:
    """Returns host and port of the metrics of each node that lives."""
    import ray

    nodes = (node for node in ray.nodes() if node["Alive"])
    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]


def _forget_dead(folder: Path) -> None:
    for path in folder.glob("*.json"):
        is_dead = path.stem.isdigit() and not Path("/proc", path.stem).exists()
        # Ray may not have written its list yet, but its folder is there
        if is_dead or (path.is_symlink() and not path.readlink().parent.exists()):
            path.unlink(missing_ok=True)


def _place(folder: Path, name: str) -> Path:
    return folder / f"cluster-{name}.json"
