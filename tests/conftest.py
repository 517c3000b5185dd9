from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
# one for every cluster of this run: Ray keeps the first that a process has read, and knows no other from then on
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16))
# OpenMP's threads spin while they wait for each other, here and in every engine: with more of them than cores (tests
# that run beside each other, a busy machine) training a tiny model took 194 s, and 13 s where they sleep
os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0", KMP_BLOCKTIME="0")
FOLDER = tempfile.mkdtemp(prefix="manta-tests-")
"""Of this process: what is made once for many tests. It goes when they are done."""
# a developer's own choices are none of the tests'
os.environ.update(MANTA_CONF=tempfile.mkdtemp(dir=FOLDER), MANTA_TESTS=FOLDER)


def pytest_unconfigure() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The shipped model's folder."""
    return ROOT / "demo" / "model"


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """Forty shipped tickets as JSONL."""
    lines = (ROOT / "demo" / "tickets.jsonl").read_text().splitlines()[:40]
    path = tmp_path / "tickets.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """1,319 real questions; skips where the folder with real workloads is absent."""
    path = SHARED_DATA / "gsm8k_test.jsonl"
    if not path.exists():
        pytest.skip("the folder of real workloads, ../shared/data, is absent")
    return path


def read_answers(output: Path) -> list[dict]:
    """Reads all answers of a job, sorted by row id."""
    import pyarrow.parquet as pq

    rows = [row for path in output.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    rows += [json.loads(line) for path in output.glob("part-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["row_id"])
