"""Every mistake in a job is found before anything starts, and named on one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.data import DataSpec
from conf.schema.engine import Device, EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.output import OutputSpec
from pipelines.batch.plan import MAX_BLOCK_ROWS, MIN_BLOCK_ROWS, Plan, absolute, make_plan
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


def test_a_right_job_is_planned_and_its_output_folder_made(plan: Callable[..., Plan], tmp_path: Path) -> None:
    got = plan()
    assert got.source.rows == 2
    assert got.identity.columns == ["q", "gold", "n"]
    assert got.identity.max_model_len == 128
    assert got.device is Device.cpu
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_limit_cuts_the_source(plan: Callable[..., Plan]) -> None:
    assert plan(data={"limit": 1}).source.rows == 1


@pytest.mark.parametrize("rows, replicas", [(10, 1), (100_000, 1), (100_000, 64), (3000, 2)])
def test_blocks_are_neither_tiny_nor_huge(plan: Callable[..., Plan], tmp_path: Path, rows: int, replicas: int) -> None:
    pq.write_table(pa.table({"q": ["x"] * rows}), tmp_path / "rows.parquet", row_group_size=64)
    got = plan(data={"input": str(tmp_path / "rows.parquet")}, engine={"num_replicas": replicas})
    assert MIN_BLOCK_ROWS <= got.block_rows <= MAX_BLOCK_ROWS
    assert got.source.rows == rows
    assert got.blocks_in_flight >= 2


def test_the_default_output_folder_is_named_after_model_and_time(
    plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    got = plan(output={"path": None}, model={"name": "tiny"})
    assert Path(got.output.path).parent == tmp_path / "out"
    assert Path(got.output.path).name.startswith("tiny-2")


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


def test_cuda_without_a_gpu_is_refused(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refused(engine={"kind": EngineKind.vllm, "device": Device.cuda}).startswith("engine.device=cuda")


def test_an_output_path_that_is_a_file_or_below_one_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        assert refused(output={"path": str(path)}).startswith(f"output.path={path}: ")
    assert (tmp_path / "file").read_text() == "x"


def test_an_output_uri_of_an_unknown_scheme_is_refused(refused: Callable[..., str]) -> None:
    assert refused(output={"path": "foo://bucket/out"}).startswith("output.path=foo://bucket/out: ")


PART = "part-0123456789ab.parquet"


@pytest.mark.parametrize("former", [PART, "part-0123456789ab.jsonl", f"failed/{PART}"])
def test_a_former_jobs_folder_is_refused_and_left_alone(
    refused: Callable[..., str], tmp_path: Path, former: str
) -> None:
    path = tmp_path / "out" / former
    path.parent.mkdir(parents=True)
    path.write_text("former")
    message = refused()
    assert message.startswith("output.path=")
    assert "output.overwrite=true" in message
    assert path.read_text() == "former"


def test_overwriting_deletes_a_former_jobs_files_and_no_others(plan: Callable[..., Plan], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ours = [PART, f"failed/{PART}", "_manta/job.json"]
    others = ["notes.txt", "sub/part-x.parquet", "part-list.txt", "failed/why.md"]
    for name in [*ours, *others]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")
    plan(output={"overwrite": True})
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left == set(others)


def test_a_users_own_files_do_not_make_a_folder_a_former_jobs(plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("x")
    plan()
    assert (tmp_path / "out" / "notes.txt").read_text() == "x"


def test_a_later_mistake_does_not_cost_the_former_jobs_files(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PART).write_text("former")
    refused(engine={"kind": EngineKind.vllm, "device": Device.cuda}, output={"overwrite": True})
    assert (tmp_path / "out" / PART).read_text() == "former"


@pytest.mark.parametrize("place", ["", "failed"])
def test_overwriting_never_deletes_the_input(refused: Callable[..., str], tmp_path: Path, place: str) -> None:
    path = tmp_path / "out" / place / PART
    path.parent.mkdir(parents=True)
    (tmp_path / "out" / "part-0123456789ac.parquet").write_text("former")
    pq.write_table(pa.table({"q": ["a"]}), path)
    message = refused(data={"input": str(path)}, output={"overwrite": True})
    assert message.startswith("output.")
    assert path.exists()


def test_a_trailing_slash_of_an_output_path_changes_nothing(plan: Callable[..., Plan], tmp_path: Path) -> None:
    assert plan(output={"path": f"file://{tmp_path}/out/"}).output.join("x").path == str(tmp_path / "out" / "x")


def test_a_fingerprint_changes_with_the_checkpoint(plan: Callable[..., Plan], model: Path) -> None:
    first = plan().identity.model_fingerprint
    assert plan().identity.model_fingerprint == first
    (model / "model.safetensors").write_bytes(b"weights")
    assert plan().identity.model_fingerprint != first


def test_local_paths_are_made_absolute_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = absolute(replace(BatchJob(), model=ModelSpec(path="m"), data=DataSpec(input="x", prompt_file="p")))
    assert (job.model.path, job.model.tokenizer, job.data.prompt_file) == (
        str(tmp_path / "m"),
        None,
        str(tmp_path / "p"),
    )
