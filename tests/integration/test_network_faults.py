"""A host that the network loses in the midst of work. Nothing tells the others: its packets are gone, no more."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import read_answers
from hosts import Hosts, hosts, lack
from jobs import command, computed, questions, record, wait_for_computed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROWS = 1500


def start_on(found: Hosts, *words: str) -> subprocess.Popen[str]:
    """A command on the first host, which has the head."""
    return subprocess.Popen(
        found.inside(1, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=found.environment
    )


def test_a_job_goes_on_without_a_host_that_was_cut_off_and_has_each_row_once(tmp_path: Path):
    if (reason := lack()) is not None:
        pytest.skip(reason)
    source, out, seen = questions(tmp_path / "q.jsonl", ROWS), tmp_path / "out", tmp_path / "computed"
    words = [f"data.input={source}", f"output.path={out}", "engine.num_replicas=5", "engine.max_in_flight=8"]
    words += ["engine.max_num_seqs=8", "engine.fault.latency_ms=300", f"engine.fault.computed_file={seen}"]
    # six CPUs for five replicas and a reader: each host has a replica
    with hosts(tmp_path, 3, num_cpus=2) as found:
        job = start_on(found, *command(*words, f"cluster.address={found.gcs_address}"))
        try:
            wait_for_computed(seen, ROWS // 2, job)
            found.cut_off(2)
            at_cut = computed(seen)
            said = job.communicate(timeout=240)
        finally:
            job.kill()
    assert job.returncode == 0, said
    assert at_cut < ROWS
    assert sorted(row["n"] for row in read_answers(out)) == list(range(ROWS))
    assert record(out)["answers"] == ROWS
    assert record(out)["engine_restarts"] >= 1
