"""The pool of replicas of a whole job: how it starts, and what it gives back when. Run as people run it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import read_answers
from jobs import ENVIRONMENT, command, manta, questions, record

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("replicas", ["2", "1..2"])
def test_all_engines_start_at_once_and_rows_go_to_the_first_that_is_ready(tmp_path: Path, replicas: str) -> None:
    """The first to start is never ready: were they started one by one, no row would be answered."""
    source, out, slow = questions(tmp_path / "in.jsonl", 300), tmp_path / "out", tmp_path / "slow"
    done = manta(
        *(f"data.input={source}", f"output.path={out}", f"engine.num_replicas={replicas}", "engine.max_num_seqs=4"),
        *(f"engine.fault.slow_start_file={slow}", "engine.fault.latency_ms=20", "output.rows_per_file=16"),
    )
    assert done.returncode == 0, done.stderr
    assert slow.exists()
    assert sorted(row["n"] for row in read_answers(out)) == list(range(300))
    said = record(out)
    assert len(said["engine_start_s"]) == 1
    quick, starting = (share["seconds"] for share in said["replica_seconds"]["replicas"])
    assert quick["computing"] > 0
    assert {cause for cause, seconds in starting.items() if seconds} == {"start_up"}


def test_a_partitioned_replica_gives_its_placement_group_back_when_no_rows_are_left_for_it(tmp_path: Path) -> None:
    """A row of one of two replicas hangs: the other does all that is left, and goes."""
    source, out = questions(tmp_path / "in.jsonl", 200), tmp_path / "out"
    with source.open("a") as lines:
        lines.write(json.dumps({"question": "hang", "n": 200}) + "\n")
    job = command(
        *(f"data.input={source}", f"output.path={out}", "engine.num_replicas=2", "engine.tensor_parallel_size=2"),
        *("engine.max_num_seqs=4", "output.rows_per_file=16", "engine.fault.hang_marker=hang"),
    )
    script = Path(__file__).with_name("groups.py")
    line = [sys.executable, str(script), *job]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    seen = [Counter(json.loads(line)) for line in done.stdout.splitlines()]
    assert seen[-2] == {"CREATED": 1, "REMOVED": 1}, seen
    assert seen[-1] == {"REMOVED": 2}, seen
