"""A job that `scripts/torture.py` hurts, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
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
