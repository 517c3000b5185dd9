"""A job made ready to be sent: its id, its package, the environment that it runs in. All that can be wrong is found."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cluster.known import KnownCluster, jobs_api
from cluster.submit.attempt import derive_id, ready_line
from cluster.submit.client import JobClient
from cluster.submit.order import AUTO, HOMES, Order, typed
from cluster.submit.package import ORDER, SEALED, check_size, digests, named_files, own_code, write_package
from cluster.submit.seal import HOOK, seal, wanted
from cluster.submit.travel import Placed, place, shipped
from conf.entry import ROOT
from conf.errors import UserError
from conf.schema.cluster import ClusterSpec
from conf.schema.submit import Environment, SubmitSpec

STOP_S = 60
"""Seconds that a job may take to end when it is told to; a service gets what draining takes."""
_LEAVE_S = 45
"""Beyond the time to drain, what a service may take to end (`serve.service_verb`)."""
_NODES_OWN = ("ray", "torch")
"""Packages that a lock leaves to the nodes: Ray must be the cluster's own, torch the build for its devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """The cluster that a job is for."""

    token: str = field(repr=False)
    is_local: bool
    """Whether its nodes see this machine's files."""
    address: str
    """Where the verb joins it, on its nodes."""
    words: str
    """What names it in a further command, with a space before; empty where it needs no name."""

    @classmethod
    def here(cls, cluster: KnownCluster, spec: ClusterSpec) -> Where:
        """A cluster of this machine.

        Its address is told: Ray's 'auto' looks through this machine's processes, and may find another one.
        """
        words = "" if spec.name is None else f" cluster.name={spec.name}"
        return cls(token=cluster.token, is_local=True, address=cluster.gcs_address, words=words)

    @classmethod
    def elsewhere(cls, spec: ClusterSpec) -> Where:
        """A cluster of other machines.

        Raises:
            UserError: when its token is not in the environment.
        """
        api = jobs_api(spec)
        return cls(token=api.token, is_local=False, address=AUTO, words=f" cluster.jobs_url={api.url}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """What is sent."""

    verb: str
    base: str
    """The job's id."""
    spec: SubmitSpec
    package: Path
    num_files: int
    size_bytes: int
    """Of the package, compressed."""
    is_local: bool
    """Whether the cluster's nodes see this machine's files."""
    python: str
    where: str
    """Words that name the cluster, for further commands; empty where they need none."""
    output: str
    """Where results go; empty where that is nowhere."""
    stop_s: int

    @property
    def where_results(self) -> str:
        """The end of a sentence that says where results are."""
        return f" ({self.output})" if self.output else ""

    @property
    def metadata(self) -> dict[str, str]:
        """What the cluster tells of it; no secrets."""
        texts = {"verb": self.verb, "job": self.base, "output": self.output, "user": getpass.getuser()}
        return {**texts, "stop_s": str(self.stop_s)}

    def entrypoint(self, submission_id: str) -> str:
        """Returns the command that runs it there."""
        words = [self.python, "-m", "cluster.submit.begin", ORDER, submission_id]
        return f"exec {shlex.join(words)}"

    def marker(self, submission_id: str) -> str | None:
        """Returns what a service writes when it is ready; null for what ends by itself."""
        return ready_line(submission_id) if self.verb == "serve" else None

    def runtime_env(self, client: JobClient) -> dict[str, Any]:
        """Returns Ray's runtime environment.

        Raises:
            UserError: when the lock file cannot be read.
        """
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(self.stop_s)}
        found: dict[str, Any] = {"working_dir": str(self.package), "env_vars": variables}
        if self.spec.env:
            found["worker_process_setup_hook"] = HOOK
        if self.spec.environment is Environment.lock:
            lock = self.spec.lock
            device = "gpu" if lock is None and client.has_gpu() else "cpu"
            found["pip"] = pip_environment(Path(lock or ROOT / "requirements" / f"{device}.txt"))
        return found


def make_parcel(verb: str, job: Any, spec: SubmitSpec, where: Where, here: Path, folder: Path) -> Parcel:
    """Makes a job ready.

    Args:
        verb: what runs it.
        job: composed and typed.
        spec: what travels with it.
        where: the cluster.
        here: the current folder, absolute.
        folder: where its package is written.

    Raises:
        UserError: for the first mistake found.
    """
    if getattr(job, "dry_run", False):
        raise UserError("dry_run=true runs nothing: leave submit out")
    is_local = where.is_local
    plain = msgspec.to_builtins(job)
    named = [Path(os.path.normpath(here / Path(name).expanduser())) for name in spec.files]
    files = named_files(named, here)
    if not is_local:
        demo = shipped(plain)
        files |= named_files(demo, here, "demo")
        named += demo
    variables = wanted(spec.env, os.environ)
    placed = place(plain, named, here, is_local)
    has_output = (plain.get("output") or {}).get("path") is not None
    base = derive_id(verb, placed.job, digests(files), "" if has_output else str(here))
    done = _with_results(verb, job, placed, here, base, is_local)
    done["cluster"] = {**done["cluster"], "address": where.address, "name": None, "jobs_url": None}
    typed(verb, done)  # what is wrong with it is found here, not there
    environ = {name: os.environ[name] for name in HOMES if name in os.environ} if is_local else {}
    modified = {at: path.stat().st_mtime_ns for at, path in files.items()}
    order = Order(verb=verb, job=done, seen=placed.seen, environ=environ, modified_ns=modified)
    texts = {ORDER: msgspec.json.encode(order)}
    if variables:
        texts[SEALED] = seal(variables, where.token)
    files = {**own_code(), **files}
    check_size(files, spec.max_bytes)
    package = folder / "job.zip"
    write_package(package, files, texts)
    return Parcel(
        verb=verb,
        base=base,
        spec=spec,
        package=package,
        num_files=len(files),
        size_bytes=package.stat().st_size,
        is_local=is_local,
        python=spec.python or (sys.executable if is_local and spec.environment is Environment.none else "python"),
        where=where.words,
        output=str((done.get("output") or {}).get("path") or ""),
        stop_s=int(job.deployment.drain_s) + _LEAVE_S if verb == "serve" else STOP_S,
    )


def pip_environment(lock: Path) -> dict[str, Any]:
    """Returns what Ray installs of a lock file; each line names one version, so nothing is resolved.

    Raises:
        UserError: when the file cannot be read, or names no package.
    """
    try:
        text = lock.expanduser().read_text()
    except OSError as error:
        raise UserError(f"submit.lock={lock}: {error.strerror}") from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    packages = [line for line in lines if line and not line.startswith("-")]
    packages = [line for line in packages if line.split("==")[0].split("[")[0].strip() not in _NODES_OWN]
    if not packages:
        raise UserError(f"submit.lock={lock}: names no package")
    options = ["--no-deps", "--disable-pip-version-check", "--no-cache-dir"]
    return {"packages": packages, "pip_check": False, "pip_install_options": options}


def _with_results(verb: str, job: Any, placed: Placed, here: Path, base: str, is_local: bool) -> dict[str, Any]:
    """The job, with results in a place that outlives the package's folder."""
    plain = placed.job
    if verb == "serve":
        deployment = {**plain["deployment"], "detach": False}
        if deployment["logs"] is None and is_local:
            deployment["logs"] = str(here / "out" / f"serve-{deployment['name']}")
        return {**plain, "deployment": deployment}
    output = plain["output"]
    if output["path"] is not None:
        return plain
    if verb == "evaluate":  # the card lies beside the model
        if "model.path" in placed.seen:
            return plain
        raise UserError("output.path must be set: the model travels, and its card would be lost")
    if not is_local:
        raise UserError(
            "output.path must be set: a URI, or the absolute path of a folder that the cluster's nodes share"
        )
    name = f"{job.model.name}-{base.rpartition('-')[2]}" if verb == "batch" else job.title
    return {**plain, "output": {**output, "path": str(here / "out" / name)}}
