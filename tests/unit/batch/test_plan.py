"""Every mistake in a job is found before anything starts, and named on one line.

One file, though it is long: each test plans the same small job with one thing changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.data import DataFormat, DataSpec
from conf.schema.engine import Device, EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.output import OutputFormat, OutputSpec
from conf.schema.sampling import SamplingSpec
from pipelines.batch.plan import Plan, absolute, make_plan, on_device
from serve.engine.arguments import engine_argument_names

CONFIG = {"max_position_embeddings": 128, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def plan(tmp_path: Path, model: Path) -> Callable[..., Plan]:
    """Plans a job that is right but for what the test changes: ``engine={...}``, ``data={...}`` and so on."""
    (tmp_path / "in.jsonl").write_text('{"q": "a", "gold": "b", "n": 1}\n{"q": "c", "gold": "d", "n": 2}\n')

    def make(**nodes: dict[str, Any]) -> Plan:
        job = BatchJob(
            model=ModelSpec(**{"path": str(model), **nodes.get("model", {})}),
            engine=EngineSpec(**{"kind": EngineKind.fake, **nodes.get("engine", {})}),
            data=DataSpec(**{"input": str(tmp_path / "in.jsonl"), "prompt": "{{ q }}", **nodes.get("data", {})}),
            output=OutputSpec(**{"path": str(tmp_path / "out"), **nodes.get("output", {})}),
            sampling=SamplingSpec(**nodes.get("sampling", {})),
        )
        return make_plan(job)

    return make


@pytest.fixture
def refused(plan: Callable[..., Plan]) -> Callable[..., str]:
    def make(**nodes: dict[str, Any]) -> str:
        with pytest.raises(UserError) as caught:
            plan(**nodes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return make


def test_a_right_job_is_planned_and_its_output_not_touched(plan: Callable[..., Plan], tmp_path: Path) -> None:
    got = plan(output={"overwrite": True})
    assert got.source.rows == 2
    assert got.identity.columns == ["q", "gold", "n"]
    assert got.identity.max_model_len == 128
    assert got.device is Device.cpu
    assert (got.output.root.path, got.output.suffix) == (str(tmp_path / "out"), "parquet")
    assert not (tmp_path / "out").exists()


def test_a_limit_cuts_the_source(plan: Callable[..., Plan]) -> None:
    assert plan(data={"limit": 1}).source.rows == 1


def test_the_default_output_folder_is_named_after_model_and_time(
    plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    got = plan(output={"path": None}, model={"name": "tiny"})
    assert Path(got.output.root.path).parent == tmp_path / "out"
    assert Path(got.output.root.path).name.startswith("tiny-2")


def test_a_pool_that_may_be_empty_is_refused(refused: Callable[..., str]) -> None:
    assert refused(engine={"num_replicas": "0..2"}).startswith("engine.num_replicas must begin at 1")


def test_a_model_path_that_is_no_folder_is_refused(refused: Callable[..., str], model: Path) -> None:
    assert refused(model={"path": "gone"}).startswith("model.path=gone: no such folder")
    assert refused(model={"path": str(model / "config.json")}).startswith(f"model.path={model / 'config.json'}")


@pytest.mark.parametrize("content", [None, "{", "[]", "\udcff"])
def test_a_model_folder_without_a_readable_config_is_refused(
    refused: Callable[..., str], model: Path, content: str | None
) -> None:
    (model / "config.json").unlink()
    if content is not None:
        (model / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    message = refused()
    assert message.startswith(f"model.path={model}: ")
    assert "config.json" in message


def test_a_model_folder_without_a_tokenizer_is_refused(refused: Callable[..., str], model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "no tokenizer in it" in refused()


def test_a_tokenizer_or_chat_template_that_is_missing_is_refused(refused: Callable[..., str]) -> None:
    assert refused(model={"tokenizer": "gone"}).startswith("model.tokenizer=gone")
    assert refused(model={"chat_template": "gone"}).startswith("model.chat_template=gone")


def test_more_context_than_the_model_has_is_refused(refused: Callable[..., str], plan: Callable[..., Plan]) -> None:
    message = refused(engine={"max_model_len": 129})
    assert message.startswith("engine.max_model_len")
    assert "128" in message
    assert "129" in message
    assert plan(engine={"max_model_len": 128}).identity.max_model_len == 128


@pytest.mark.parametrize("nested", [False, True])
def test_a_partition_that_does_not_fit_the_model_is_refused(
    refused: Callable[..., str], model: Path, nested: bool
) -> None:
    (model / "config.json").write_text(json.dumps({"text_config": CONFIG} if nested else CONFIG))
    assert refused(engine={"tensor_parallel_size": 3}).startswith("engine.tensor_parallel_size")
    assert refused(engine={"pipeline_parallel_size": 3}).startswith("engine.pipeline_parallel_size")


@pytest.mark.parametrize("column", ["output", "row_id", "finish_reason", "request_key"])
def test_a_column_that_manta_adds_needs_a_prefix(
    refused: Callable[..., str], plan: Callable[..., Plan], tmp_path: Path, column: str
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"q": "a", column: "mine"}) + "\n")
    message = refused()
    assert f"'{column}'" in message
    assert "output.prefix" in message
    assert plan(output={"prefix": "manta_"}).source.rows == 1


def test_a_prefix_may_not_make_a_collision(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"q": "a", "my_output": "mine"}\n')
    assert "'my_output'" in refused(output={"prefix": "my_"})


def test_a_column_with_an_inner_name_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"q": "a", "__manta_row_id": "mine"}\n')
    assert "'__manta_row_id'" in refused()


@pytest.mark.parametrize("key", ["id", "answer"])
def test_an_unknown_column_is_refused_with_the_nearest_name(refused: Callable[..., str], key: str) -> None:
    message = refused(data={key: "golf"})
    assert message.startswith(f"data.{key} names the column 'golf'")
    assert "did you mean 'gold'?" in message


@pytest.mark.parametrize(
    "data, got",
    [
        ({"prompt": None}, "none"),
        ({"prompt_file": "x"}, "data.prompt and data.prompt_file"),
        ({"messages": "q"}, "data.prompt and data.messages"),
    ],
)
def test_exactly_one_source_of_prompts_is_wanted(refused: Callable[..., str], data: dict[str, Any], got: str) -> None:
    assert refused(data=data).endswith(f"got {got}")


def test_a_system_message_goes_with_a_prompt_alone(refused: Callable[..., str]) -> None:
    assert refused(data={"prompt": None, "messages": "q", "system": "be kind"}).startswith("data.system")


@pytest.mark.parametrize("value", [5, [], [""], [5], None, "", "???", 2.5, True])
def test_an_input_that_is_no_path_is_refused(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(data={"input": value}).startswith("data.input")


def test_a_template_that_names_a_missing_column_is_refused(refused: Callable[..., str]) -> None:
    assert refused(data={"prompt": "{{ p }}"}).startswith("data.prompt names the column 'p'")


@pytest.mark.skipif(not engine_argument_names(), reason="vLLM is not installed")
def test_an_unknown_engine_argument_is_refused_with_the_nearest_name(
    refused: Callable[..., str], plan: Callable[..., Plan]
) -> None:
    message = refused(engine={"vllm": {"enforce_eage": True}})
    assert message.startswith("engine.vllm.enforce_eage")
    assert "did you mean 'enforce_eager'?" in message
    assert plan(engine={"vllm": {"enforce_eager": True}}).source.rows == 2
    assert "is Manta's own" in refused(engine={"vllm": {"worker_extension_cls": "mine.Worker"}})


def test_cuda_without_a_gpu_is_refused(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refused(engine={"kind": EngineKind.vllm, "device": Device.cuda}).startswith("engine.device=cuda")


def test_an_output_uri_of_an_unknown_scheme_is_refused(refused: Callable[..., str]) -> None:
    assert refused(output={"path": "foo://bucket/out"}).startswith("output.path=foo://bucket/out: ")


def test_answers_do_not_lie_among_what_is_read(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    (folder / "in.jsonl").write_text('{"q": "a"}\n')
    said = refused(data={"input": str(folder)}, output={"path": f"{folder}/"})
    assert said.startswith(f"output.path={folder}/ is data.input: ")


def test_without_an_output_path_what_goes_on_is_named(plan: Callable[..., Plan], tmp_path: Path) -> None:
    assert plan().again == "the same command goes on"
    unnamed = plan(output={"path": None})
    assert unnamed.again == f"the same command with output.path={unnamed.output.root.path} goes on"


def test_a_trailing_slash_of_an_output_path_changes_nothing(plan: Callable[..., Plan], tmp_path: Path) -> None:
    assert plan(output={"path": f"file://{tmp_path}/out/"}).output.root.join("x").path == str(tmp_path / "out" / "x")


def test_a_fingerprint_changes_with_the_checkpoint(plan: Callable[..., Plan], model: Path) -> None:
    first = plan().identity.model_fingerprint
    assert plan().identity.model_fingerprint == first
    (model / "model.safetensors").write_bytes(b"weights")
    assert plan().identity.model_fingerprint != first


@pytest.mark.parametrize(
    "output, data, kind, suffix",
    [
        ("auto", {}, "parquet", "parquet"),
        ("parquet", {}, "parquet", "parquet"),
        ("jsonl", {}, "jsonl", "jsonl"),
        ("auto", {"prompt": None, "format": DataFormat.openai_batch}, "openai_batch", "jsonl"),
        ("jsonl", {"prompt": None, "format": DataFormat.openai_batch}, "jsonl", "jsonl"),
    ],
)
def test_the_output_has_the_shape_of_the_input_unless_another_is_asked_for(
    plan: Callable[..., Plan], output: str, data: dict[str, Any], kind: str, suffix: str
) -> None:
    got = plan(output={"format": OutputFormat(output)}, data=data)
    assert (got.format.value, got.output.suffix) == (kind, suffix)


def test_requests_of_the_openai_shape_are_answered_for_such_files_alone(refused: Callable[..., str]) -> None:
    assert refused(output={"format": OutputFormat.openai_batch}).startswith("output.format=openai_batch")


CHANGES: dict[str, dict[str, Any]] = {
    "data.prompt": {"data": {"prompt": "{{ gold }}"}},
    "data.system": {"data": {"system": "be kind"}},
    "data.id": {"data": {"id": "n"}},
    "data.apply_chat_template": {"data": {"apply_chat_template": False}},
    "sampling.max_tokens": {"sampling": {"max_tokens": 7}},
    "sampling.seed": {"sampling": {"seed": 1}},
    "sampling.stop": {"sampling": {"stop": ["x"]}},
    "engine.vllm.seed": {"engine": {"vllm": {"seed": 7}}},
    "engine.kind": {"engine": {"kind": EngineKind.vllm}},
    "output.format": {"output": {"format": OutputFormat.jsonl}},
    "output.prefix": {"output": {"prefix": "m_"}},
    "model (fingerprint)": {"model": {"dtype": "float16"}},
}


@pytest.mark.parametrize("key", CHANGES)
def test_what_decides_the_answers_is_told_apart(plan: Callable[..., Plan], key: str) -> None:
    before = plan()
    after = plan(**CHANGES[key])
    names = {*before.decides, *after.decides}
    assert {name for name in names if before.decides.get(name) != after.decides.get(name)} == {key}
    assert json.loads(json.dumps(after.decides)) == after.decides


@pytest.mark.parametrize(
    "nodes",
    [
        {"engine": {"num_replicas": 4}},
        {"engine": {"max_num_seqs": 7, "max_model_len": 64, "vllm": {"enforce_eager": True}}},
        {"data": {"limit": 1}},
        {"data": {"answer": "gold"}},
        {"model": {"name": "other"}},
        {"output": {"rows_per_file": 7}},
    ],
)
def test_what_decides_no_answer_may_change_between_runs(plan: Callable[..., Plan], nodes: dict[str, Any]) -> None:
    assert plan(**nodes).decides == plan().decides


def test_a_prompt_file_decides_by_what_it_says(plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_text("{{ q }}")
    (tmp_path / "b.jinja").write_text("{{ q }}")
    first, second = (
        plan(data={"prompt": None, "prompt_file": str(tmp_path / name)}) for name in ("a.jinja", "b.jinja")
    )
    assert first.decides == second.decides == plan().decides
    (tmp_path / "b.jinja").write_text("{{ gold }}")
    assert plan(data={"prompt": None, "prompt_file": str(tmp_path / "b.jinja")}).decides != first.decides


def test_a_plan_moves_to_the_device_that_the_cluster_has(plan: Callable[..., Plan]) -> None:
    got = on_device(plan(), Device.cuda)
    assert got.device is Device.cuda
    assert got.placement.total.get("GPU") == 1


def test_local_paths_are_made_absolute_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ModelSpec(path="m", adapters={"a": "lora"})
    job = absolute(replace(BatchJob(), model=model, data=DataSpec(input=["x", "s3://b/x"], prompt_file="p")))
    assert (job.model.path, job.model.tokenizer, job.data.prompt_file) == (f"{tmp_path}/m", None, f"{tmp_path}/p")
    assert (job.data.input, job.model.adapters) == ([f"{tmp_path}/x", "s3://b/x"], {"a": f"{tmp_path}/lora"})
