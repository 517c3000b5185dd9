"""Tasks and adapters on a CUDA device, against transformers on the CPU. Run with: pytest -m gpu tests/gpu"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from model_files import ADAPTERS
from test_model_cases import result, run_cases, vectors

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_cases(tmp_path_factory.mktemp("models"), "cuda")


@pytest.mark.parametrize("case", ["embed", "classify", "score_cosine", "score_joint", "score_types"])
def test_vectors_are_those_of_transformers(cases: dict[str, Any], case: str) -> None:
    np.testing.assert_allclose(vectors(cases, case), result(cases, "references")[case], atol=0.02)  # TF32


@pytest.mark.parametrize("case", ["adapters", "adapters_separate"])
def test_an_adapter_answers_as_if_merged_into_the_weights(cases: dict[str, Any], case: str) -> None:
    wanted = result(cases, "references")["adapters"]
    for name, row in zip(["None", *ADAPTERS], result(cases, case), strict=False):
        (token, logprob), (wanted_token, wanted_logprob) = row["logprobs"][0], wanted[name][0]
        assert token == wanted_token, name
        assert logprob == pytest.approx(wanted_logprob, abs=0.05), name
