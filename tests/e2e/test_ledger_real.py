"""A job that is killed, and tasks and files beside plain text, with the real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SHARED_DATA, read_answers
from model_files import LABELS, make_models
from real import ENVIRONMENT, manta, record, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.mark.slow
def test_a_killed_job_answers_the_shipped_tickets_at_the_shipped_quality(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("model=demo", "data=tickets", "sampling.max_tokens=128", f"output.path={out}")
    first = start(*words)
    while len(list(out.glob("_manta/done/*"))) < 2:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    done = manta(*words)
    assert done.returncode == 0, done.stderr
    said = record(out)
    assert said["rows"] == said["answers"] == 1200
    assert said["replayed"] + said["done_before"] >= 75  # a unit
    assert said["requests"] + said["replayed"] + said["done_before"] + said["shared"] == 1200
    assert said["exact_match"] >= 0.97
    assert "exact match" in done.stdout
    assert len({row["row_id"] for row in read_answers(out)}) == len(read_answers(out)) == 1200
    assert not list((out / "_manta" / "log").iterdir())


@pytest.mark.slow
def test_a_batch_file_means_the_same_here_and_to_vllm(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"Ticket: parcel {n} never came."}], "max_tokens": 8 + n}
        for n in range(8)
    ]
    bodies[1] |= {"temperature": 0.0, "stop": ["e"]}
    bodies[2]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    bodies[3] |= {"n": 2}
    bodies[4] = {"messages": [{"role": "user", "content": "word " * 3000}]}
    bodies[5] |= {"logprobs": True, "top_logprobs": 2}
    source, theirs, out = tmp_path / "in.jsonl", tmp_path / "theirs.jsonl", tmp_path / "out"
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": {"temperature": 0.0, **body}}
        for n, body in enumerate(bodies)
    ]
    for line in lines:
        line["body"]["model"] = "demo"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch", "-i", str(source), "-o", str(theirs)]
    command += ["--model", str(ROOT / "demo" / "model"), "--served-model-name", "demo", "--enforce-eager"]
    command += ["--max-model-len", "2048", "--max-num-seqs", "16", "--dtype", "float32"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env = {**ENVIRONMENT, **settings, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = manta(
        *("model=demo", "model.dtype=float32", "data=openai_batch", f"data.input={source}", f"output.path={out}"),
        *("engine.max_model_len=2048", "engine.max_num_seqs=16"),
    )
    assert ours.returncode == 3, ours.stderr  # the long one
    good, bad = read_lines(out / "output.jsonl"), read_lines(out / "errors.jsonl")
    expected = read_lines(theirs)
    assert good.keys() | bad.keys() == expected.keys() == {line["custom_id"] for line in lines}
    refused = [name for name, line in expected.items() if line["response"]["status_code"] == 400]
    assert list(bad) == refused
    assert "r4" in refused
    assert all(line["response"]["status_code"] == 400 for line in bad.values())
    for name, line in good.items():
        mine, other = line["response"]["body"], expected[name]["response"]["body"]
        assert line["response"]["status_code"] == expected[name]["response"]["status_code"] == 200
        assert mine["usage"] == {key: other["usage"][key] for key in mine["usage"]}
        assert len(mine["choices"]) == len(other["choices"])
        for one, two in zip(mine["choices"], other["choices"], strict=True):
            for key in ("index", "finish_reason"):
                assert one[key] == two[key]
            assert one["message"]["content"] == two["message"]["content"]
    said, told = (of["r5"]["response"]["body"]["choices"][0]["logprobs"]["content"] for of in (good, expected))
    assert [token["token"] for token in said] == [token["token"] for token in told]
    np.testing.assert_allclose([t["logprob"] for t in said], [t["logprob"] for t in told], atol=1e-4)


def test_the_sample_of_a_batch_service_runs(tmp_path: Path) -> None:
    sample, out = SHARED_DATA / "aibrix_sample_job_input.jsonl", tmp_path / "out"
    if not sample.exists():
        pytest.skip("the folder of real workloads, ../shared/data, is absent")
    done = manta("model=demo", "data=openai_batch", f"data.input={sample}", f"output.path={out}")
    assert done.returncode == 0, done.stderr
    assert read_lines(out / "output.jsonl").keys() == read_lines(sample).keys()


def read_lines(path: Path) -> dict[str, Any]:
    return {line["custom_id"]: line for line in map(json.loads, path.read_text().splitlines())}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(ROOT / "demo" / "model", folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    texts = ["My parcel never came.", "I want my money back, please.", "My parcel never came.", "refund"]
    voices = [None, "small", "large", "small"]
    path.write_text(
        "".join(
            json.dumps({"q": t, "voice": v, "n": n}) + "\n" for n, (t, v) in enumerate(zip(texts, voices, strict=True))
        )
    )
    return path


def job(table: Path, out: Path, *words: str) -> pa.Table:
    done = manta(f"data.input={table}", "data.prompt={{ q }}", f"output.path={out}", *words)
    assert done.returncode == 0, done.stderr
    return pq.read_table(out).sort_by("n")


@pytest.mark.slow
def test_embeddings_are_lists_of_one_length(table: Path, tmp_path: Path) -> None:
    answers = job(table, tmp_path / "out", "model=demo", "task=embed")
    assert answers.schema.field("embedding").type == pa.list_(pa.float32(), 256)
    vectors = np.array(answers.column("embedding").to_pylist())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert record(tmp_path / "out")["shared"] == 1


@pytest.mark.slow
def test_rows_are_classified(table: Path, models: Path, tmp_path: Path) -> None:
    answers = job(table, tmp_path / "out", "model=hf", f"model.path={models / 'classifier'}", "task=classify")
    assert set(answers.column("label").to_pylist()) <= set(LABELS)
    for probabilities in answers.column("probabilities").to_pylist():
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_rows_are_scored(table: Path, models: Path, tmp_path: Path) -> None:
    words = ("model=hf", f"model.path={models / 'ranker'}", "task=score", "data.document=Where is the parcel?")
    scores = job(table, tmp_path / "out", *words).column("score").to_pylist()
    assert scores[0] == scores[2]
    assert len({round(score, 6) for score in scores}) == 3


@pytest.mark.slow
def test_a_column_names_the_adapter(table: Path, models: Path, tmp_path: Path) -> None:
    adapters = [f"model.adapters.{name}={models / name}" for name in ("small", "large")]
    words = ("model=demo", *adapters, "data.adapter=voice", "sampling.max_tokens=24")
    outputs = job(table, tmp_path / "out", *words).column("output").to_pylist()
    assert outputs[0] != outputs[2]  # the same prompt in another voice
    assert len(set(outputs)) == 4
