"""Embeddings, classes, scores and adapters through real engines, against what transformers gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import ADAPTERS, TEXTS

pytestmark = pytest.mark.timeout(580)  # the first test waits for all engines, one after another


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_cases(tmp_path_factory.mktemp("models"), "cpu")


def run_cases(folder: Path, device: str) -> dict[str, Any]:
    script = Path(__file__).with_name("model_cases.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent.parent.parent), *sys.path])}
    command = [sys.executable, str(script), str(folder), device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("CASES ")]
    assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(lines[0].removeprefix("CASES "))


def result(cases: dict[str, Any], name: str) -> Any:
    assert "raised" not in cases[name], cases[name]["raised"]
    return cases[name]["result"]


def vectors(cases: dict[str, Any], name: str) -> np.ndarray:
    return np.array([row["vector"] for row in result(cases, name) if "vector" in row])


def reference(cases: dict[str, Any], name: str) -> np.ndarray:
    return np.array(result(cases, "references")[name])


def test_an_embedding_is_the_last_hidden_state_of_length_one(cases: dict[str, Any]) -> None:
    got, wanted = vectors(cases, "embed"), reference(cases, "embed")
    assert got.shape == (len(TEXTS) + 1, 256)  # the last one is as long as the context
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_equal_texts_have_equal_embeddings_and_others_have_others(cases: dict[str, Any]) -> None:
    got = vectors(cases, "embed")
    np.testing.assert_allclose(got[0], got[2], atol=1e-5)
    assert got[0] @ got[1] < 0.99


@pytest.mark.parametrize("case", ["embed", "classify"])
def test_a_text_longer_than_the_context_is_the_rows_fault(cases: dict[str, Any], case: str) -> None:
    row = result(cases, case)[-1]
    assert row["error"] == "prompt_too_long"
    assert "128" in row["message"]


def test_classes_have_the_softmax_of_the_heads_logits(cases: dict[str, Any]) -> None:
    got = vectors(cases, "classify")
    assert got.shape == (len(TEXTS) + 1, 3)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(got, reference(cases, "classify"), atol=1e-4)


def test_a_model_that_embeds_scores_by_the_cosine(cases: dict[str, Any]) -> None:
    np.testing.assert_allclose(vectors(cases, "score_cosine"), reference(cases, "score_cosine"), atol=1e-4)
    rows = result(cases, "score_cosine")
    assert rows[-1]["error"] == "prompt_too_long"  # its second text is
    embedded = result(cases, "embed")
    assert rows[1]["tokens"] - rows[0]["tokens"] == embedded[1]["tokens"] - embedded[0]["tokens"]


def test_a_model_that_reads_both_texts_scores_by_the_sigmoid_of_its_logit(cases: dict[str, Any]) -> None:
    np.testing.assert_allclose(vectors(cases, "score_joint"), reference(cases, "score_joint"), atol=1e-4)


def test_token_types_tell_the_texts_of_a_pair_apart(cases: dict[str, Any]) -> None:
    got = vectors(cases, "score_types")
    np.testing.assert_allclose(got, reference(cases, "score_types"), atol=1e-3)
    assert np.abs(got - reference(cases, "score_without_types")).max() > 0.05


@pytest.mark.parametrize("case", ["adapters", "adapters_separate"])
def test_an_adapter_answers_as_if_merged_into_the_weights(cases: dict[str, Any], case: str) -> None:
    wanted = result(cases, "references")["adapters"]
    rows = dict(zip(["None", *ADAPTERS], result(cases, case), strict=False))
    for name, row in rows.items():
        assert [token for token, _ in row["logprobs"]] == [token for token, _ in wanted[name]], name
        np.testing.assert_allclose([p for _, p in row["logprobs"]], [p for _, p in wanted[name]], atol=1e-3)
    assert len({row["text"] for row in rows.values()}) == 3


def test_a_broken_adapter_fails_the_start(cases: dict[str, Any]) -> None:
    assert "EngineDead: vLLM did not start" in cases["adapter_broken"]["raised"]
    assert "no_proj" in cases["adapter_broken"]["raised"]


def test_a_model_without_the_head_fails_the_start(cases: dict[str, Any]) -> None:
    assert "the model cannot do task=classify" in cases["cannot_classify"]["raised"]
