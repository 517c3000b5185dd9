"""A checkpoint becomes a graph that computes the same, or the step says why not."""

from __future__ import annotations

import json

import pytest
from edge_model import CASES, NEEDS_ONNX, SMALL, exports

from conf.schema.model import ModelSpec
from serve.engine.onnx.layout import read_edge_model
from serve.engine.prompt import load_renderer

pytestmark = [NEEDS_ONNX, pytest.mark.timeout(290)]  # the first test pays the exports
REFUSED = {
    "gelu": "hidden_act silu",
    "odd": "block_size=32 must divide hidden_size=72",
    "gpt2": "the model is GPT2",
}


@pytest.mark.parametrize(
    "name", [name for name, (_, scheme, _) in CASES.items() if scheme == "fp32" and name not in REFUSED]
)
def test_in_float32_it_chooses_the_model_s_tokens(name: str) -> None:
    _, measured = exports()[name]
    assert measured["greedy_tokens_equal"] == measured["greedy_tokens"] == 96, measured
    assert measured["max_logit_difference"] < 1e-3


@pytest.mark.parametrize(
    "name, most", [("demo", 0.05), ("demo_blocks", 0.02), ("qwen3_int8", 0.1), ("qwen2_blocks", 0.05)]
)
def test_in_8_bits_it_is_near_and_small(name: str, most: float) -> None:
    folder, measured = exports()[name]
    assert 0 < measured["logit_error"] < most, measured
    weights = (folder / "model.onnx.data").stat().st_size
    angles = 4 * read_edge_model(str(folder)).context * read_edge_model(str(folder)).head_dim
    assert weights - angles < 0.4 * 4 * measured["parameters"]  # a float32 has 4 bytes


def test_in_4_bits_it_is_smaller() -> None:
    folder, measured = exports()["llama_int4"]
    assert measured["logit_error"] < 0.5
    assert (folder / "model.onnx.data").stat().st_size < 0.3 * 4 * measured["parameters"]


@pytest.mark.parametrize("name, said", REFUSED.items())
def test_a_model_that_the_graph_has_no_words_for_is_refused(name: str, said: str) -> None:
    assert said in exports()[name][1]["failed"]


def test_a_folder_says_what_the_engine_must_know() -> None:
    folder, measured = exports()["mistral"]
    edge = read_edge_model(str(folder))
    sizes = (edge.layers, edge.kv_heads, edge.head_dim, edge.vocabulary, edge.context)
    assert sizes == (2, 2, 16, 2048, SMALL["max_position_embeddings"])
    assert measured["bytes"] == sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == edge.context


def test_prompts_have_the_tokens_that_they_have_in_the_checkpoint(demo_model) -> None:
    folder, _ = exports()["demo"]
    edge, whole = (load_renderer(ModelSpec(path=str(path)), 512, None) for path in (folder, demo_model))
    messages = [{"role": "system", "content": "Be brief. €ł"}, {"role": "user", "content": "  two\n lines 🙂"}]
    text = edge.text(messages)
    assert text == whole.text(messages)
    assert edge.tokens([text]) == whole.tokens([text])
    assert edge.decode(edge.tokens([text])[0]) == whole.decode(whole.tokens([text])[0])
