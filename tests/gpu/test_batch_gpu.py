"""Whole jobs on CUDA devices: two engines on one, sizes by the planner, a model on two. Run: pytest -m gpu tests/gpu"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import read_answers
from jobs import record, run

from cluster.connect import local_devices

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
two_gpus = pytest.mark.skipif(local_devices() < 2, reason="needs two GPUs")


def answered(out: Path, rows: int, *words: str) -> dict:
    """Runs the shipped model over so many tickets and returns the job's record."""
    done = run(
        *("batch", "model=demo", "data=tickets", f"data.limit={rows}", f"output.path={out}", "engine.device=cuda"),
        *("output.rows_per_file=64", *words),
        timeout_s=560,
    )
    assert done.returncode == 0, done.stderr
    said = record(out)
    assert len(read_answers(out)) == said["answers"] == rows
    assert said["exact_match"] >= 0.9
    return said


def test_two_engines_share_a_gpu(tmp_path: Path) -> None:
    """Few sequences at a time, so that the first does not end the job before the second is ready."""
    said = answered(
        *(tmp_path / "out", 1200, "engine.engines_per_device=2", "engine.num_replicas=2"),
        *("engine.kv_cache_bytes=1073741824", "engine.max_num_seqs=2"),
    )
    assert len(said["engine_start_s"]) == 2
    assert all(share["seconds"]["computing"] > 0 for share in said["replica_seconds"]["replicas"])


def test_the_planner_sizes_a_job(tmp_path: Path) -> None:
    said = answered(tmp_path / "out", 40, "engine=planned")
    assert said["job"]["engine"]["max_num_seqs"] == 64  # forty rows need no more
    assert said["predicted"]["inference_s"] > 0


@two_gpus
@pytest.mark.parametrize("key", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_model_lies_on_two_gpus(tmp_path: Path, key: str) -> None:
    answered(tmp_path / "out", 40, f"engine.{key}=2", "engine.max_model_len=512")
