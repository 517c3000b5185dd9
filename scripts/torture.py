"""Kills what can be killed while `manta batch` runs, and counts what was lost, doubled or paid for twice.

    python scripts/torture.py --trials driver=20,actor=20,node=3,death=5,hang=3,memory=5,disk=3,torn=5 --out FILE

Every trial is a job over its own folder, run again until it ends well. The engine is the fake one, which appends each
request that it computes to a file: so a request that was computed twice is seen. Exits with 1 where a row was lost or
doubled, an answer is wrong, or more rows were computed again than were in flight.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torture_job import Job, Trial
from torture_kinds import KINDS

ROWS = 1500


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
