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


@pytest.mark.parametrize("replicas", ["2", pytest.param("1..2", marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_engines_that_share_a_device_both_answer(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 500), tmp_path / "out"
    done = manta(
        *(f"data.input={source}", f"output.path={out}", "engine.num_replicas=2", "engine.engines_per_device=2"),
        *("engine.kv_cache_bytes=1048576", "engine.max_num_seqs=4", "engine.fault.latency_ms=400"),
        "output.rows_per_file=16",
    )
    assert done.returncode == 0, done.stderr
    assert sorted(row["n"] for row in read_answers(out)) == list(range(500))
    first, second = (share["seconds"] for share in record(out)["replica_seconds"]["replicas"])
    assert first["computing"] > 0
    assert second["computing"] > 0


@pytest.mark.slow
def test_a_job_runs_in_the_sizes_that_the_planner_chooses(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 60), tmp_path / "out"
    words = (f"data.input={source}", f"output.path={out}")
    shown = manta(*words, "dry_run=true", f"plan.json_file={tmp_path / 'plan.json'}")
    assert shown.returncode == 0, shown.stderr
    done = manta(*words, "engine.sizing=planned")
    assert done.returncode == 0, done.stderr
    shape = json.loads((tmp_path / "plan.json").read_text())["shape"]
    engine = record(out)["job"]["engine"]
    assert engine["max_num_seqs"] == shape["max_num_seqs"] != 256
    assert engine["max_in_flight"] == shape["in_flight_rows"]
    assert record(out)["answers"] == 60


@pytest.mark.slow
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


def test_a_job_that_waits_for_room_that_others_hold_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Two of three replicas have room, and nobody reads for them: nothing would ever end by itself."""
    source, out = questions(tmp_path / "in.jsonl", 200), tmp_path / "out"
    job = command(f"data.input={source}", f"output.path={out}", "engine.num_replicas=3")
    line = [sys.executable, str(Path(__file__).with_name("crowd.py")), *job]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["code"] == 130, done.stderr
    assert said["seconds"] < 30
    assert "the same command goes on" in done.stderr
