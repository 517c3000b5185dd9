"""What a package tells the cluster to do, and doing it there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from cluster.connect import SUBMITTED
from cluster.submit.package import SEALED
from conf import entry
from conf.errors import UserError

AUTO = "auto"
HOMES = ("MANTA_HOME", "MANTA_CONF", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
"""Variables that say where a user's files are, on machines that share them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A verb and its job."""

    verb: str
    job: dict[str, Any]
    """As plain values, with the paths that hold on the cluster."""
    seen: dict[str, str] = field(default_factory=dict)
    """What the driver's node must see, by key."""
    environ: dict[str, str] = field(default_factory=dict)
    """Variables that are no secrets."""
    modified_ns: dict[str, int] = field(default_factory=dict)
    """When files that travel were last written, by their place: a ledger knows files by it."""


def typed(verb: str, job: Mapping[str, Any]) -> Any:
    """Returns a job of plain values as the verb takes it, checked as the command line is.

    Raises:
        UserError: for values that break a rule.
    """
    try:
        return msgspec.convert(dict(job), type=entry.SCHEMAS[verb])
    except msgspec.ValidationError as error:
        raise error.__cause__ if isinstance(error.__cause__, UserError) else UserError(str(error)) from error


def run(words: list[str]) -> int:
    """Does what an order says, in a package's folder on a cluster; `words` are the order's file and the submission.

    Raises:
        UserError: for words that it does not know.
    """
    from conf.cli import guarded

    if len(words) != 2:
        raise UserError("an order is a file and the id of a submission")
    order = msgspec.json.decode(Path(words[0]).read_bytes(), type=Order)
    return guarded(order.verb, lambda: _run(order, words[1]))


def _run(order: Order, submission_id: str) -> int:
    from conf.cli import function_of

    os.environ.update(order.environ)
    os.environ[SUBMITTED] = submission_id
    if Path(SEALED).exists():
        from cluster.submit.seal import open_env

        open_env()
    for place, modified_ns in order.modified_ns.items():
        if Path(place).stat().st_mtime_ns != modified_ns:
            os.utime(place, ns=(modified_ns, modified_ns))
    for key, path in order.seen.items():
        if not Path(path).exists():
            raise UserError(
                f"{key}={path} is not there on {socket.gethostname()}, the cluster's node: name it in submit.files to"
                " send it, or use a path that the nodes share"
            )
    job = typed(order.verb, order.job)
    if job.cluster.address == AUTO:
        job.cluster.address = own_cluster() or AUTO
    return function_of(order.verb)(job)


def own_cluster() -> str | None:
    """Returns the address of the cluster that started this process; null where that cannot be told.

    Ray's 'auto', and the RAY_ADDRESS that it gives to a job, look through the machine's processes: where two clusters
    share it, they find either.
    """
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        found = next((word for word in words if word.startswith("--gcs-address=")), None)
        if found is not None:  # its raylet, which started the supervisor that started this
            return found.partition("=")[2]
    return None
