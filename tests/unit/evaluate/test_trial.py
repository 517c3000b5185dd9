from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conf import entry
from conf.errors import UserError
from conf.schema.evaluate import Metric
from conf.schema.model import ModelSpec
from pipelines.evaluate.trial import Trial, find_folder, make_trial
from serve.engine.fingerprint import fingerprint_model
from serve.engine.prompt import load_renderer


def save(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trial(tmp_path: Path, table: Path, *words: str) -> Trial:
    own = ["model=demo", f"data.input={table}", "data.prompt={{ q }}", "data.answer=a", "engine=fake"]
    return make_trial(entry.compose("evaluate", *own, f"output.path={tmp_path / 'card'}", *words))


def metrics(found: Trial) -> set[str]:
    return {metric.value for metric in found.metrics}


def test_what_rows_allow_is_measured_and_the_rest_has_a_reason(tmp_path: Path):
    maths = save(tmp_path / "maths.jsonl", {"q": "2+2", "a": "2 + 2 = 4\n#### 4"}, {"q": "1+0", "a": "#### 1"})
    found = trial(tmp_path, maths)
    assert metrics(found) == {"exact", "number", "perplexity"}
    assert "no JSON object" in found.skipped["json_fields"]
    texts = save(tmp_path / "texts.jsonl", {"q": "who", "a": "the 2 of us"}, {"q": "why", "a": '{"b": 1}'})
    found = trial(tmp_path, texts)
    assert metrics(found) == {"exact", "perplexity"}
    assert found.skipped.keys() == {"json_fields", "number"}
    # asked for by name, they are measured on the rows that have them
    assert metrics(trial(tmp_path, texts, "quality.metrics=[number,json_fields]")) == {"number", "json_fields"}
    with pytest.raises(UserError, match=r"quality\.metrics has json_fields, but 2 of 2"):
        trial(tmp_path, maths, "quality.metrics=[json_fields]")


def test_columns_of_numbers_are_numbers(tmp_path: Path):
    table = save(tmp_path / "in.jsonl", {"q": "2+2", "a": 4}, {"q": "1/2", "a": 0.5}, {"q": "0", "a": None})
    found = trial(tmp_path, table)
    assert [row.expected for row in found.model.rows] == ["4", "0.5"]
    assert Metric.number in found.metrics
    assert found.bad == {"no_expected_answer": 1}
    assert [at for _, at in found.places] == [1, 2, 3]


def test_rows_that_cannot_be_asked_or_judged_are_left_out_by_class(tmp_path: Path):
    table = save(tmp_path / "in.jsonl", {"q": "x " * 300, "a": "1"}, {"q": "x", "a": "y " * 300}, {"q": "x", "a": "y"})
    found = trial(tmp_path, table, "engine.max_model_len=100")
    assert found.bad == {"prompt_too_long": 1, "answer_too_long": 1}
    assert len(found.model.rows) == 1


def test_the_key_is_that_of_rows_prompt_and_sampling_not_of_the_model(tmp_path: Path, demo_model: Path):
    table = save(tmp_path / "in.jsonl", {"q": "who", "a": "me"})
    other = shutil.copytree(demo_model, tmp_path / "other")
    key = trial(tmp_path, table).data_key
    assert trial(tmp_path, table, "model=hf", f"model.path={other}", "engine.max_num_seqs=3").data_key == key
    assert trial(tmp_path, table, "data.prompt={{ q }}?").data_key != key
    assert trial(tmp_path, table, "sampling.max_tokens=3").data_key != key
    assert trial(tmp_path, save(tmp_path / "in.jsonl", {"q": "who", "a": "you"})).data_key != key


def test_a_parent_sees_the_same_rows(tmp_path: Path):
    table = save(tmp_path / "in.jsonl", {"q": "who", "a": "me"}, {"q": "", "a": "me"})
    found = trial(tmp_path, table, "parent=demo")
    assert found.parent is not None
    assert [row.place for row in found.parent.rows] == [row.place for row in found.model.rows]
    assert {"agreement", "divergence"} <= metrics(found)


def test_an_expected_answer_ends_with_the_models_own_end(tmp_path: Path, demo_model: Path):
    found = trial(tmp_path, save(tmp_path / "in.jsonl", {"q": "who", "a": "me"}))
    (row,) = found.model.rows
    end = json.loads((demo_model / "config.json").read_text())["eos_token_id"]
    assert row.expected_tokens[-1] == end
    renderer = load_renderer(found.model.model, 64, False)
    assert renderer.decode(row.expected_tokens) == "me"
    assert end not in row.expected_tokens[:-1]


def test_a_name_wins_over_a_folder_as_it_does_in_model(
    tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Path(find_folder("demo", "parent")) == demo_model
    assert find_folder("./demo", "parent") == str(tmp_path / "demo")
    with pytest.raises(UserError, match=r"parent=demmo: no such folder.*did you mean 'demo'"):
        find_folder("demmo", "parent")


def test_a_parent_that_is_no_model_is_named_as_such(tmp_path: Path):
    with pytest.raises(UserError, match=r"^parent=\S+: .*no config\.json"):
        trial(tmp_path, save(tmp_path / "in.jsonl", {"q": "who", "a": "me"}), f"parent={tmp_path}")


def test_a_card_beside_a_model_does_not_make_it_another(tmp_path: Path, demo_model: Path):
    model = entry.compose(
        "batch", "model=hf", f"model.path={shutil.copytree(demo_model, tmp_path / 'm')}", "data=tickets"
    )
    before = fingerprint_model(model.model)
    for name in ("card.json", "card.md", "artifact.json"):
        (tmp_path / "m" / name).write_text("{}")
    assert fingerprint_model(model.model) == before
    (tmp_path / "m" / "generation_config.json").write_text("{}")
    assert fingerprint_model(model.model) != before


def test_a_folder_may_stand_where_a_name_does(demo_model: Path):
    job = entry.compose("evaluate", f"model={demo_model}", "data=tickets")
    assert job.model.path == str(demo_model)
    assert job.model.name == "model"


def test_the_edge_s_tokenizer_writes_answers_as_transformers_does(tmp_path: Path, demo_model: Path):
    edge = shutil.copytree(demo_model, tmp_path / "edge")
    (edge / "edge.json").write_text("{}")
    texts = ["me", '{"a": "é"}', ""]
    whole, plain = (load_renderer(ModelSpec(path=str(path)), 64, False) for path in (demo_model, edge))
    assert type(plain._tokenizer) is not type(whole._tokenizer)
    assert plain.answers(texts) == whole.answers(texts)
