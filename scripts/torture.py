"""Kills what can be killed while `manta batch` runs, and counts what was lost, doubled or paid for twice.

    python scripts/torture.py --trials driver=20,actor=20,node=3,death=5,hang=3,memory=5,disk=3,torn=5 --out FILE

Every trial is a job over its own folder, run again until it ends well. The engine is the fake one, which appends each
request that it computes to a file: so a request that was computed twice is seen. Exits with 1 where a row was lost or
doubled, an answer is wrong, or more rows were computed again than were in flight.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
ROWS = 1500
IN_FLIGHT = 64
REPLICAS = 2
TRIES = 12
"""Runs of one job before a trial counts as failed."""


@dataclass(kw_only=True, slots=True)
class Trial:
    """What came of one job."""

    kind: str
    kills: int = 0
    runs: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    computed_again: int = 0
    """Requests that the engine ended more than once."""
    allowed_again: int = 0
    """Rows in flight at the kills."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled, wrong or paid for twice beyond what was in flight."""
        return not (self.lost or self.doubled or self.wrong) and self.computed_again <= self.allowed_again


class Job:
    """A job that is run until it ends well."""

    def __init__(self, folder: Path, kind: str, rows: int, *words: str) -> None:
        """Writes the input."""
        self.trial = Trial(kind=kind, rows=rows)
        self.source, self.out, self.computed = folder / "in.jsonl", folder / "out", folder / "computed"
        lines = [json.dumps({"n": n, "question": f"Question {n}: what is {n} plus {n}?"}) for n in range(rows)]
        self.source.write_text("\n".join(lines) + "\n")
        self.words = [
            *("model=demo", "engine=fake", "data.prompt={{ question }}", f"data.input={self.source}"),
            *(f"output.path={self.out}", f"engine.num_replicas={REPLICAS}", f"engine.max_in_flight={IN_FLIGHT}"),
            *("engine.fault.latency_ms=40", f"engine.fault.computed_file={self.computed}", "progress.interval_s=1"),
            *words,
        ]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts the command."""
        self.trial.runs += 1
        command = [sys.executable, "-m", "conf.cli", "batch", *self.words, *words]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip

    def finish(self, *words: str) -> int:
        """Runs the command until it ends by itself; returns the last exit code."""
        code = 1
        while code not in (0, 3) and self.trial.runs < TRIES:
            process = self.start(*words)
            _, stderr = process.communicate(timeout=400)
            code = process.returncode
            if code not in (0, 3):
                self.trial.notes.append(" ".join(stderr.split())[-300:])
        if code not in (0, 3):
            self.trial.lost = self.trial.rows
        return code

    def done(self) -> int:
        """Requests that the engine has ended so far."""
        return len(self.computed.read_bytes().splitlines()) if self.computed.exists() else 0

    def wait_for(self, process: subprocess.Popen[str], requests: int) -> bool:
        """Waits until so many requests were computed; false where the job ended before."""
        while self.done() < requests:
            if process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def check(self, expected: Callable[[dict[str, Any]], str | None] | None = None) -> None:
        """Counts what was lost, doubled, wrong or computed again."""
        trial = self.trial
        wanted = {n: f"Question {n}: what is {n} plus {n}?" for n in range(trial.rows)}
        seen: Counter[int] = Counter()
        for path in self.out.glob("part-*.parquet"):
            for row in pq.read_table(path).to_pylist():
                seen[row["n"]] += 1
                trial.wrong += row["output"] != wanted[row["n"]] or row["question"] != wanted[row["n"]]
        for path in self.out.glob("failed/part-*.parquet"):
            for row in pq.read_table(path).to_pylist():
                body = json.loads(row["row"])
                seen[body["n"]] += 1
                trial.wrong += expected is None or expected(body) != row["error"]
        trial.lost += sum(n not in seen for n in wanted)
        trial.doubled = sum(count - 1 for count in seen.values())
        trial.wrong += len(list((self.out / "_manta" / "log").glob("*")))  # a finished job leaves no log
        keys = Counter(self.computed.read_text().split() if self.computed.exists() else ())
        trial.computed_again = sum(count - 1 for count in keys.values())


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


def run_trial(kind: str, seed: int, rows: int) -> Trial:
    """Runs one job to its end under one kind of trouble."""
    began = time.monotonic()
    rng = random.Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        job = Job(Path(folder), kind, rows)
        KINDS[kind](job, rng)
        if kind not in ("death", "memory", "hang", "disk"):
            job.check()
        job.trial.seconds = time.monotonic() - began
        return job.trial


def summary(trials: list[Trial]) -> list[dict[str, Any]]:
    """Adds up the trials of each kind."""
    lines = []
    for kind in dict.fromkeys(trial.kind for trial in trials):
        mine = [trial for trial in trials if trial.kind == kind]
        total = {
            name: sum(getattr(trial, name) for trial in mine)
            for name in ("kills", "runs", "rows", "lost", "doubled", "wrong", "computed_again", "allowed_again")
        }
        median_s = statistics.median(trial.seconds for trial in mine)
        lines.append({"kind": kind, "trials": len(mine), **total, "median_s": round(median_s, 1)})
    return lines


def main() -> int:
    """Runs the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="driver=20,actor=20,death=5,memory=3,hang=3,torn=5")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--parallel", type=int, default=1, help="trials at a time (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wanted = [
        (kind, seed)
        for kind, _, count in (word.partition("=") for word in options.trials.split(","))
        for seed in range(options.seed, options.seed + int(count or 1))
    ]
    trials: list[Trial] = []
    with ProcessPoolExecutor(options.parallel, max_tasks_per_child=1, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_trial, kind, seed, options.rows) for kind, seed in wanted]
        for future in as_completed(futures):
            trials.append(future.result())
            print(json.dumps(asdict(trials[-1])), flush=True)
            if options.out is not None:
                record = {"summary": summary(trials), "trials": [asdict(trial) for trial in trials]}
                options.out.write_text(json.dumps(record, indent=1))
    for line in summary(trials):
        print(json.dumps(line))
    return 0 if all(trial.is_good for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
