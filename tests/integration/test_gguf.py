"""GGUF files beside the checkpoints that they were made of, and jobs with llama.cpp where torch cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from gguf_model import NEEDS_GGUF, gguf_exports
from test_edge import without_torch

pytestmark = [NEEDS_GGUF, pytest.mark.timeout(290)]  # the first test pays the exports


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_file_of_each_kind_goes_on_as_its_checkpoint_does(name: str) -> None:
    _, measured = gguf_exports()[name]
    assert measured["greedy_tokens_equal"] >= measured["greedy_tokens"] - 1 >= 24, measured  # a tie may turn
    assert measured["max_logprob_difference"] < 0.02


def test_few_bits_make_a_small_file_that_is_near_to_the_model() -> None:
    folder, measured = gguf_exports()["demo"]
    assert measured["logit_error"] < 0.05
    assert (folder / "model.gguf").stat().st_size == measured["bytes"] < 1.1 * measured["parameters"]
    _, less = gguf_exports()["llama_int4"]
    assert measured["logit_error"] < less["logit_error"] < 0.5


@pytest.mark.parametrize(
    "name, said",
    [("window", "no sliding window"), ("turned", "rope_type default; the model has linear"), ("odd", "blocks of 32")],
)
def test_what_the_format_cannot_say_is_refused(name: str, said: str) -> None:
    assert said in gguf_exports()[name][1]["failed"]


@pytest.mark.slow
def test_a_job_answers_the_demo_without_torch(tmp_path: Path, tickets: Path) -> None:
    words = ("engine=gguf", f"model.path={gguf_exports()['demo'][0]}", "model.name=demo", "data=tickets")
    line = [sys.executable, "-m", "conf.cli", "batch", *words, f"data.input={tickets}", f"output.path={tmp_path}/out"]
    environment = without_torch(tmp_path)
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for path in (tmp_path / "out").glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 40
    assert sum(row["output"] == row["answer"] for row in rows) >= 38
