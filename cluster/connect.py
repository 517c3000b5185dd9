"""The Ray cluster of a job: started for it on this machine, or one that runs already."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.guard import guarded
from cluster.known import TOKEN, KnownCluster, find
from cluster.targets import announced, targets_folder
from conf.errors import UserError
from conf.schema.cluster import RUNNING, ClusterSpec
from conf.schema.engine import Device, EngineKind, EngineSpec

KNOCK_S = 10.0
"""Seconds that a cluster may take to accept a connection."""
JOIN_TRIES, JOIN_S = 3, 2.0
"""How often a cluster that listens is joined, and the seconds between."""
PACKAGES = ("conf", "serve", "pipelines", "cluster")
"""What workers on other machines need of us."""
SUBMITTED = "MANTA_SUBMITTED"
"""The environment variable with the id of the submission that this process runs for; see `cluster.submit`."""
LOGS = ("worker-", "ray-data", "raylet", "gcs_server", "python-core-driver", "controller_", "proxy_", "replica_")
"""Beginnings of the names of logs that are kept."""
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
"""What Ray reads when it is imported."""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Named for where it is the default: Ray's dozen ports are then this machine's own, not every address's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A cluster that can be used."""

    resources: dict[str, float]
    """All that it has, or may come to have, by Ray's names."""
    start_s: float
    address: str
    """Where other processes on this machine join it."""
    logs: Path | None
    """Where the local cluster's logs are; null where it is not ours."""


def local_devices() -> int:
    """Returns the number of NVIDIA GPUs of this machine, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def decide_device(engine: EngineSpec, cluster: ClusterSpec) -> Device:
    """Returns where engines run, as far as this machine knows; what a cluster elsewhere has is known once it is joined.

    Raises:
        UserError: for CUDA on a machine without a GPU.
    """
    if engine.kind is not EngineKind.vllm:
        return Device.cpu
    gpus = local_devices()
    if engine.device is not Device.auto:
        if engine.device is Device.cuda and cluster.address is None and not gpus:
            raise UserError("engine.device=cuda, but this machine shows no NVIDIA GPU (see manta doctor)")
        return engine.device
    return Device.cuda if gpus else Device.cpu


def keep_logs(logs: Path | None, target: Path) -> None:
    """Copies the logs of Ray, its workers and the engines into a folder, which is made; null has none."""
    if logs is None:
        return
    with suppress(OSError):  # a full disk, say, is told of elsewhere
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(logs.glob("**/*")):
            wanted = path.name.startswith(LOGS)
            if wanted and path.is_file() and path.stat().st_size:
                shutil.copyfile(path, target / path.name)


@contextmanager
def connect(spec: ClusterSpec, num_cpus: int, scratch: Path) -> Iterator[Connection]:
    """Starts or joins a cluster and leaves it at the end, but for a `KeyboardInterrupt`.

    Args:
        spec: which.
        num_cpus: CPUs that a local cluster must count at least.
        scratch: a folder with a short path for a local cluster's sockets and logs; the caller removes it.

    Raises:
        UserError: when the cluster cannot be reached.
    """
    address = spec.address
    if address is None and (spec.nodes > 1 or spec.max_nodes is not None):
        raise UserError(f"cluster.nodes={spec.nodes} is for manta cluster up; then: cluster=running")
    most_cpus = 0
    if address == RUNNING:
        cluster = find(spec.name)
        address, most_cpus = _use(cluster), cluster.most_cpus
    _set_environment(spec.address in (None, RUNNING))
    with guarded(scratch) if spec.address is None else nullcontext():
        began = time.monotonic()
        context = _start(spec, num_cpus, scratch) if address is None else _join(address)
        _quiet_ray_data()
        import ray

        is_ours = spec.address is None
        try:
            session = Path(context.address_info["session_dir"])
            resources: dict[str, float] = dict(ray.cluster_resources())
            with announced(targets_folder(os.environ)) if is_ours else nullcontext():
                yield Connection(
                    resources=resources | {"CPU": max(float(most_cpus), resources.get("CPU", 0.0))},
                    start_s=time.monotonic() - began,
                    address=context.address_info["gcs_address"],
                    logs=session / "logs" if is_ours else None,
                )
        finally:
            # on Ctrl-C the caller ends the process, and Ray with it: threads that still speak to Ray would not survive
            # this
            if not isinstance(sys.exception(), KeyboardInterrupt):
                with suppress(Exception):
                    ray.shutdown()


def _start(spec: ClusterSpec, num_cpus: int, scratch: Path) -> Any:
    import ray

    # Ray starts a worker for each CPU: one for each core of a machine of which this process has a few is in its way
    return ray.init(
        address="local",
        num_cpus=spec.num_cpus or max(len(os.sched_getaffinity(0)), num_cpus),
        object_store_memory=spec.object_store_bytes,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(scratch),
    )


def _use(cluster: KnownCluster) -> str:
    """Takes the cluster's token, and no other, for what this process and its children say to Ray; returns its address.

    Ray keeps the first token that a process has read.
    """
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would win
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(cluster.folder / TOKEN))
    return cluster.gcs_address


def _join(address: str) -> Any:
    import ray

    root = Path(__file__).resolve().parent.parent
    if address != "auto":
        _knock(address)
    for again in range(JOIN_TRIES - 1, -1, -1):
        try:
            return ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # a job that was submitted came with this code, for its workers too
                runtime_env={} if SUBMITTED in os.environ else {"py_modules": [str(root / name) for name in PACKAGES]},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            # what listens may not be a whole cluster yet: its nodes come one after the other
            if again and address != "auto" and isinstance(error, ConnectionError):
                ray.shutdown()
                time.sleep(JOIN_S)
                continue
            said = " ".join(filter(None, (last_line(error), error.__cause__ and last_line(error.__cause__))))
            raise UserError(f"cluster.address={address}: no cluster answers: {said}") from error
    raise AssertionError("the last try returns or raises")


def last_line(error: BaseException) -> str:
    """Returns the line that says why: Ray puts a whole traceback into what it raises."""
    return str(error).strip().rpartition("\n")[2]


def _knock(address: str) -> None:
    """Checks that something listens: Ray itself waits a minute for a cluster that is not there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"cluster.address must be 'auto', 'running' or 'host:port', got '{address}'")
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise UserError(f"cluster.address={address}: no cluster answers: {error}") from error


def _set_environment(is_here: bool) -> None:
    """Sets what Ray reads when it is imported; what the user set wins.

    Args:
        is_here: whether the cluster is on this machine alone.
    """
    for key, value in (DEFAULTS | LOOPBACK if is_here else DEFAULTS).items():
        os.environ.setdefault(key, value)


def _quiet_ray_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
