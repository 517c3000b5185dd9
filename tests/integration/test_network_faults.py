"""A host that the network loses in the midst of work. Nothing tells the others: its packets are gone, no more."""

from __future__ import annotations

import json
import subprocess
import sys
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


def test_a_service_answers_all_that_it_accepted_without_a_host_that_was_cut_off(tmp_path: Path):
    if (reason := lack()) is not None:
        pytest.skip(reason)
    here = Path(__file__).parent
    with hosts(tmp_path, 3, num_cpus=2) as found, (tmp_path / "said").open("wb") as said:
        words = [sys.executable, str(here / "echo_service.py"), "8000", "plain", "3", "1", "20", found.gcs_address]
        service = subprocess.Popen(
            found.inside(1, *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=found.environment,
        )
        assert service.stdin is not None
        assert service.stdout is not None
        try:
            assert "ready\n" in service.stdout, (tmp_path / "said").read_text()
            asking = start_on(found, sys.executable, str(here / "asking.py"), "http://127.0.0.1:8000", "300", "12")
            assert asking.stdout is not None
            answers = []
            try:
                for line in asking.stdout:
                    answers.append(json.loads(line))
                    if len(answers) == 100:
                        found.cut_off(2)
            finally:
                asking.kill()
                asking.communicate()
        finally:
            service.kill()
            service.communicate()
    assert [answer for answer in answers if answer["status"] != 200] == []
    assert len(answers) == 300
    before, after = ({answer["pid"] for answer in part} for part in (answers[:100], answers[-50:]))
    assert len(before) == 3
    assert len(after) == 2
