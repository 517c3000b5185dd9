"""`manta plan` as people call it: a process of its own, without Ray and without a device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jobs import questions, run

from conf.cli import main

LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}


def test_a_page_and_a_file_of_json(tmp_path: Path, tickets: Path):
    done = run(
        "plan", "model=demo", "data=tickets", f"data.input={tickets}", f"plan.json_file={tmp_path / 'plan.json'}"
    )
    assert done.returncode == 0, done.stderr
    assert "from the column 'answer'" in done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["input"]["rows"] == plan["input"]["sampled_rows"] == 40
    assert plan["model"]["parameters"] == pytest.approx(3.5e6, rel=0.1)
    assert plan["forecast"]["seconds"] > 0


def test_another_machines_devices_without_weights(tmp_path: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model / name, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    table = questions(tmp_path / "in.jsonl", 30)
    words = [f"model.path={tmp_path}", f"data.input={table}", "data.prompt={{ question }}", "hardware=h200"]
    assert main(["plan", *words, "hardware.num_devices=2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["shape"]["tensor_parallel_size"] == 2
    assert plan["input"]["completion_tokens"]["source"].startswith("assumed")
    assert main(["plan", *words]) == 2
    assert "cannot hold the model" in capsys.readouterr().err


def test_dry_run_of_a_batch_is_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = questions(tmp_path / "in.jsonl", 30)
    words = ["model=demo", f"data.input={table}", "data.prompt={{ question }}", f"output.path={tmp_path / 'out'}"]
    assert main(["batch", *words, "dry_run=true", "engine=fake"]) == 0
    assert "manta plan:" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_plan_for_a_service_needs_neither_it_nor_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = questions(tmp_path / "in.jsonl", 30)
    words = ["model=demo", f"data.input={table}", "data.prompt={{ question }}", "engine=service"]
    assert main(["plan", *words, "engine.service.url=http://127.0.0.1:9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["bad_rows"]) == (30, 0)
    assert found["prompt_tokens"] > 30


def test_answers_that_nothing_ends_are_as_long_as_they_may_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = questions(tmp_path / "in.jsonl", 30)
    words = ["model=demo", f"data.input={table}", "data.prompt={{ question }}", "sampling.max_tokens=20", "--json"]
    for more, mean, source in (("", 20, "max_tokens, since"), ("sampling.stop=[x]", 10, "assumed")):
        assert main(["plan", *words, "sampling.ignore_eos=true", *([more] if more else [])]) == 0
        tokens = json.loads(capsys.readouterr().out)["input"]["completion_tokens"]
        assert tokens["mean"] == mean
        assert tokens["source"].startswith(source)


def test_a_column_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = questions(tmp_path / "in.jsonl", 3)
    words = ["model=demo", f"data.input={table}", "data.prompt={{ question }}", "plan.answer_column=nn"]
    assert main(["plan", *words]) == 2
    assert "plan.answer_column names the column 'nn', which the table lacks" in capsys.readouterr().err
