"""What `scripts/torture.py` does to a job."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pyarrow.parquet as pq
from torture_job import IN_FLIGHT, REPLICAS, Job


def kill_driver(job: Job, rng: random.Random) -> None:
    """SIGKILLs the driver at a random moment, once or more, and runs the command again."""
    for _ in range(rng.choice((1, 1, 2))):
        process = job.start()
        if rng.random() < 0.15:  # while Ray or the engines start
            time.sleep(rng.uniform(0.2, 8))
        else:
            job.wait_for(process, rng.randrange(job.trial.rows))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            job.trial.kills += 1
            job.trial.allowed_again += REPLICAS * IN_FLIGHT
        process.wait()
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 3))  # else the next one meets workers that have not noticed yet
    job.finish()


def kill_actor(job: Job, rng: random.Random) -> None:
    """SIGKILLs engine actors while the job runs."""
    process = job.start()
    for share in sorted(rng.uniform(0.02, 0.9) for _ in range(rng.choice((1, 2)))):
        if not job.wait_for(process, int(share * job.trial.rows)):
            break
        actors = [p for p in _below(process.pid) if "MapWorker" in " ".join(p.cmdline()[:1])]
        if actors:
            rng.choice(actors).kill()
            job.trial.kills += 1
            job.trial.allowed_again += IN_FLIGHT
    _end(job, process)


def let_die(job: Job, rng: random.Random) -> None:
    """A row kills its engine each time: it is quarantined, the others are answered."""
    poison = rng.randrange(job.trial.rows)
    _poison(job, f"engine.fault.die_marker=Question {poison}:", poison)


def run_out_of_memory(job: Job, rng: random.Random) -> None:
    """A row's replica is killed by the kernel each time, as where memory is out."""
    poison = rng.randrange(job.trial.rows)
    _poison(job, f"engine.fault.kill_marker=Question {poison}:", poison)


def let_hang(job: Job, rng: random.Random) -> None:
    """A row makes its engine stand still: the watchdog ends it."""
    poison = rng.randrange(job.trial.rows)
    _poison(job, f"engine.fault.hang_marker=Question {poison}:", poison, "engine.hang_timeout_s=2")


def _poison(job: Job, fault: str, poison: int, *words: str) -> None:
    job.finish(fault, *words)
    record = json.loads((job.out / "_manta" / "job.json").read_text())
    job.trial.kills = record["engine_restarts"]
    job.trial.allowed_again = job.trial.kills * IN_FLIGHT
    job.check(lambda row: "engine_killer" if row["n"] == poison else None)
    if record["failed"] != 1:
        job.trial.notes.append(f"failed={record['failed']}")
        job.trial.wrong += 1


def tear_files(job: Job, rng: random.Random) -> None:
    """SIGKILLs the driver, then cuts part files, marks and logs short, as a power cut does."""
    process = job.start()
    job.wait_for(process, rng.randrange(job.trial.rows // 3, job.trial.rows))
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        job.trial.kills += 1
    process.wait()
    time.sleep(4)
    files = [path for path in job.out.rglob("*") if path.is_file() and path.suffix in (".parquet", ".jsonl", ".json")]
    files = [path for path in files if path.name != "spec.json" and "leases" not in path.parts]
    for path in rng.sample(files, min(3, len(files))):
        rows = pq.ParquetFile(path).metadata.num_rows if path.suffix == ".parquet" else 0
        rows = max(rows, path.read_bytes().count(b"\n"), 1)
        job.trial.allowed_again += rows + 100  # what the file held is lost with it
        job.trial.kills += 1
        with path.open("r+b") as stream:
            stream.truncate(rng.randrange(path.stat().st_size) if path.stat().st_size else 0)
    job.trial.allowed_again += REPLICAS * IN_FLIGHT
    job.finish()


def _below(pid: int) -> Iterator[psutil.Process]:
    for process in psutil.Process(pid).children(recursive=True):
        try:
            process.cmdline()
        except psutil.Error:
            continue
        yield process


def _end(job: Job, process: subprocess.Popen[str], *words: str) -> None:
    _, stderr = process.communicate(timeout=400)
    if process.returncode not in (0, 3):
        job.trial.notes.append(" ".join(stderr.split())[-300:])
        job.finish(*words)


def kill_node(job: Job, rng: random.Random) -> None:
    """Ends one of three nodes of a cluster in the midst of the job."""
    # Ray reads them when it is imported
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=f"{rng.getrandbits(128):032x}")
    from ray.cluster_utils import Cluster

    room: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**room, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(**room) for _ in range(2)]
        process = job.start(f"cluster.address={cluster.address}")
        if job.wait_for(process, rng.randrange(job.trial.rows // 10, job.trial.rows)):
            cluster.remove_node(rng.choice(nodes), allow_graceful=False)
            job.trial.kills += 1
            job.trial.allowed_again += REPLICAS * IN_FLIGHT
        _end(job, process, f"cluster.address={cluster.address}")
    finally:
        cluster.shutdown()


def fill_disk(job: Job, rng: random.Random) -> None:
    """Lets the output's disk run full, then makes room and runs the command again."""
    disk = job.out.parent / "disk"
    disk.mkdir()
    size = rng.randrange(60, 160) << 10
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)
    try:
        job.out = disk / "out"
        job.words = [word if not word.startswith("output.path=") else f"output.path={job.out}" for word in job.words]
        process = job.start()
        _, stderr = process.communicate(timeout=400)
        job.trial.notes.append(" ".join(stderr.split())[-200:])
        job.trial.kills += 1
        job.trial.wrong += process.returncode == 0 or "disk is full" not in stderr
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        job.trial.allowed_again += REPLICAS * IN_FLIGHT
        job.finish()
        job.check()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


KINDS: dict[str, Callable[[Job, random.Random], None]] = {
    "driver": kill_driver,
    "actor": kill_actor,
    "death": let_die,
    "memory": run_out_of_memory,
    "hang": let_hang,
    "torn": tear_files,
    "node": kill_node,
    "disk": fill_disk,
}
