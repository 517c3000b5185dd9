"""Measures what submitting a batch job costs: the same job, run on a cluster of this machine directly and submitted.

    python scripts/bench_submit.py --rows 200 --runs 5 --out docs/benchmarks/submit.json

Both kinds take turns on one cluster, each with a new output folder, so nothing is done before. Time is the command's,
from its start to its end; what lies around the job's own count of it (`around_s`) is free of how long engines took to
start, which varies most on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_machine import machine
from demo_tickets import make_rows

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"direct": ["batch", "cluster=running"], "submit": ["submit", "batch"]}


def manta(home: Path, *words: str) -> float:
    """Runs a command and returns the seconds that it took.

    Raises:
        RuntimeError: when it fails.
    """
    environment = {**os.environ, "MANTA_HOME": str(home), "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    command = [sys.executable, "-m", "conf.cli", *words]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:2])}: {(done.stderr + done.stdout)[-2000:]}")
    return time.monotonic() - began


def measure(home: Path, kind: str, number: int) -> dict[str, float]:
    """Runs the job once; returns the command's seconds, those that the job itself counts, and those around it."""
    output = home / f"{kind}-{number}"
    job = ["model=demo", "engine=fake", f"data.input={home / 'rows.jsonl'}", "data.prompt={{ text }}"]
    wall_s = manta(home, *KINDS[kind], *job, f"output.path={output}", "progress.quiet=true", "progress.show_rows=0")
    record = json.loads((output / "_manta" / "job.json").read_text())
    job_s = record["seconds"]["total"]
    return {"wall_s": wall_s, "job_s": job_s, "around_s": wall_s - job_s}


def main() -> None:
    """Runs all and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="manta-bench-", dir="/tmp") as folder:
        home = Path(folder)
        lines = (json.dumps({"text": row["ticket"]}) for row in make_rows(arguments.rows, seed=77))
        (home / "rows.jsonl").write_text("\n".join(lines) + "\n")
        manta(home, "cluster", "up", "cluster.nodes=1", "cluster.num_cpus=4", "cluster.object_store_bytes=200000000")
        try:
            for kind in KINDS:  # the first of each finds files and workers cold
                measure(home, kind, -1)
            for number in range(arguments.runs):
                for kind in random.sample(sorted(KINDS), len(KINDS)):
                    runs[kind].append(measure(home, kind, number))
                    print(number, kind, runs[kind][-1], flush=True)
        finally:
            manta(home, "cluster", "down")
    result: dict[str, Any] = {"machine": machine(), "rows": arguments.rows, "runs": runs}
    for name in ("wall_s", "job_s", "around_s"):
        result[f"median_{name}"] = {kind: statistics.median(run[name] for run in runs[kind]) for kind in KINDS}
    for name in ("wall_s", "around_s"):
        pairs = zip(runs["direct"], runs["submit"], strict=True)
        result[f"overhead_{name}"] = result[f"median_{name}"]["submit"] - result[f"median_{name}"]["direct"]
        result[f"overhead_{name}_by_pair"] = [submit[name] - direct[name] for direct, submit in pairs]
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
