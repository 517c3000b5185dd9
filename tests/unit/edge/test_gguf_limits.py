from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.errors import UserError
from conf.schema.engine import Device, EngineKind, EngineSpec, Sizing
from conf.schema.export import ExportFormat, ExportScheme, ExportSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.optimize.export.gguf_file import interleaved
from serve.engine.errors import RequestRejected
from serve.engine.gguf import limits
from serve.engine.gguf.engine import SEEDS, Heard, body_of
from serve.engine.gguf.limits import check_gguf, check_gguf_request, check_gguf_sampling, count_slots
from serve.engine.onnx.limits import check_not_edge
from serve.engine.protocol import Request, TokenLogprob

SPEC = EngineSpec(kind=EngineKind.gguf)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A folder with a file, where llama.cpp is installed."""
    (tmp_path / "model.gguf").touch()
    monkeypatch.setattr(limits, "find_spec", lambda name: name)
    return ModelSpec(path=str(tmp_path))


@pytest.mark.parametrize(
    "engine, task, said",
    [
        ({}, Task.embed, "task=embed has no use with engine=gguf"),
        ({"vllm": {"seed": 1}}, Task.generate, "engine.vllm.seed has no use"),
        ({"tensor_parallel_size": 2}, Task.generate, "is not partitioned"),
        ({"device": Device.cuda}, Task.generate, "engine.device=cuda has no use"),
        ({"sizing": Sizing.planned}, Task.generate, "engine.sizing=planned has no use"),
    ],
)
def test_what_it_cannot_do_is_said_before_any_work(model: ModelSpec, engine: dict, task: Task, said: str):
    check_gguf(model, SPEC, Task.generate)
    with pytest.raises(UserError, match=said):
        check_gguf(model, EngineSpec(kind=EngineKind.gguf, **engine), task)


def test_where_it_is_not_installed_the_extra_is_named(model: ModelSpec, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"an extra: run 'make gguf' \(requirements/gguf\.txt\)"):
        check_gguf(model, SPEC, Task.generate)


def test_a_folder_holds_one_file_and_vllm_does_not_read_it(model: ModelSpec, tmp_path: Path):
    with pytest.raises(UserError, match=r"was exported for engine=gguf; engine\.kind is vllm"):
        check_not_edge(model, EngineSpec())
    (tmp_path / "other.gguf").touch()
    with pytest.raises(UserError, match=r"2 GGUF files, such as model\.gguf"):
        check_gguf(model, SPEC, Task.generate)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"no \*\.gguf in it: engine=gguf runs"):
        check_gguf(model, SPEC, Task.generate)


@pytest.mark.parametrize("key, value", [("regex", "a+"), ("presence_penalty", 0.5), ("frequency_penalty", 0.5)])
def test_sampling_that_it_has_not_is_refused_of_jobs_and_rows(key: str, value: Any):
    sampling = SamplingSpec(**{key: value})
    with pytest.raises(UserError, match=f"sampling.{key} has no use with engine=gguf"):
        check_gguf_sampling(sampling)
    with pytest.raises(RequestRejected, match=f"{key} has no use with"):
        check_gguf_request(Request(id="r", token_ids=[1], sampling=sampling), 8)


def test_sequences_find_room_in_the_cache_or_the_numbers_are_told():
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64}
    each = 2 * 2 * 2 * 2 * 16 * 100  # keys and values, 2 bytes, layers, heads, numbers of a head, tokens
    assert count_slots(config, EngineSpec(kv_cache_bytes=each * 3 + 1), 100) == 3
    assert count_slots(config, EngineSpec(max_num_seqs=5), 100) == 5
    with pytest.raises(UserError, match=f"holds no sequence of 100 tokens, which takes {each}"):
        count_slots(config, EngineSpec(kv_cache_bytes=each - 1), 100)


def test_a_request_says_all_that_its_defaults_could_change():
    sampling = SamplingSpec(max_tokens=50, temperature=0.7, seed=SEEDS - 1, n=2, logprobs=0, stop=["x"])
    body = body_of(Request(id="r", token_ids=[1] * 6, sampling=sampling), 1, 40)
    assert (body["max_tokens"], body["seed"], body["n_probs"], body["stop"]) == (34, 0, 1, ["x"])
    assert (body["top_k"], body["top_p"], body["min_p"], body["repeat_penalty"]) == (0, 1.0, 0.0, 1.0)
    assert "seed" not in body_of(Request(id="r", token_ids=[1], sampling=SamplingSpec()), 0, 40)


def test_pieces_become_an_answer():
    heard = Heard()
    place = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -0.1}]}
    heard.take({"choices": [{"text": "a", "finish_reason": None, "logprobs": {"content": [place]}}]}, 1)
    usage = {"completion_tokens": 2, "prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 6}}
    heard.take({"choices": [{"text": "", "finish_reason": "stop", "logprobs": None}], "usage": usage}, 1)
    assert heard.places == [TokenLogprob(token="a", logprob=-0.5, top=(("b", -0.1),))]
    assert (heard.text, heard.finish_reason, heard.tokens, heard.cached_tokens) == ("a", "stop", 2, 6)


def test_rows_are_put_where_the_rotation_turns_neighbours():
    halves = np.arange(8)[:, None]  # two heads of four: 0 turns with 2, 1 with 3
    assert interleaved(halves, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_format_has_its_own_schemes():
    with pytest.raises(UserError, match=r"export\.format=gguf has blocks of 32: take export\.scheme=fp32|int8_blocks"):
        ExportSpec(format=ExportFormat.gguf, scheme=ExportScheme.int8)
    with pytest.raises(UserError, match="got int4 and 64"):
        ExportSpec(format=ExportFormat.gguf, scheme=ExportScheme.int4, block_size=64)
