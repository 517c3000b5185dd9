from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from omegaconf import OmegaConf

import conf
from conf import entry
from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.data import DataFormat, DataSpec
from conf.schema.task import Task

CONF = Path(conf.__file__).parent
PRIMARIES = sorted(path.stem for path in CONF.glob("*.yaml"))
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
STEPS = sorted((path.parent.name, path.stem) for path in CONF.glob("step/*/*.yaml"))
HEAVY = ("torch", "ray", "vllm", "transformers", "pyarrow")


def compose_filled(primary: str, *words: str) -> Any:
    """Composes a job whose missing keys get a value."""
    missing = OmegaConf.missing_keys(entry.compose_config(primary, *words))
    return entry.compose(primary, *words, *(f"{key}=some" for key in sorted(missing)))


def selecting(group: str) -> list[str]:
    """The primaries whose defaults list names the group."""
    found = []
    for primary in PRIMARIES:
        entries = yaml.safe_load((CONF / f"{primary}.yaml").read_text())["defaults"]
        if any(isinstance(item, dict) and group in item for item in entries):
            found.append(primary)
    return found


def test_every_primary_has_a_schema_and_every_schema_a_primary():
    assert sorted(entry.SCHEMAS) == PRIMARIES


def test_all_yaml_files_are_primaries_or_options_of_a_group():
    assert len(list(CONF.rglob("*.yaml"))) == len(PRIMARIES) + len(OPTIONS) + len(STEPS)


@pytest.mark.parametrize("primary", PRIMARIES)
def test_primary_composes_to_its_typed_job(primary: str):
    job = compose_filled(primary)
    assert type(job) is entry.SCHEMAS[primary]
    for field in fields(job):
        assert type(getattr(job, field.name)) is get_type_hints(type(job))[field.name]


def assert_said(got: Any, value: Any) -> None:
    """A file says a part of a nested node, and of each node of a dict of them."""
    if is_dataclass(got):
        got = {name: getattr(got, name) for name in value}
    if isinstance(value, dict):
        assert set(got) == set(value)
        for name, part in value.items():
            assert_said(got[name], part)
    else:
        assert getattr(got, "name", got) == value


@pytest.mark.parametrize("group,option", OPTIONS)
def test_group_option_composes_and_sets_what_its_file_says(group: str, option: str):
    primaries = selecting(group)
    assert primaries, f"no primary selects from {group}"
    said = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    for primary in primaries:
        job = compose_filled(primary, f"{group}={option}")
        assert type(job) is entry.SCHEMAS[primary]
        for key, value in said.items():
            if key != "defaults" and "${" not in str(value):
                assert_said(getattr(getattr(job, group), key), value)


@pytest.mark.parametrize("kind,option", STEPS)
def test_a_step_s_option_composes_and_sets_what_its_file_says(kind: str, option: str):
    said = yaml.safe_load((CONF / "step" / kind / f"{option}.yaml").read_text())
    (step,) = compose_filled(
        "optimize", "recipe=custom", f"+step/{kind}@recipe.steps.mine={option}"
    ).recipe.steps.values()
    assert step.kind.value == said["kind"] == kind
    for key, value in said.get(kind, {}).items():
        got = getattr(step.part, key)
        assert getattr(got, "name", got) == value


def test_a_user_s_own_choices_stand_beside_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = tmp_path / "it's, mine"
    for name, text in {"model/mine": "name: mine\npath: /somewhere", "data/tickets": "input: other\nprompt: p"}.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("MANTA_CONF", str(own))
    assert "mine" in entry.options("model")
    job = entry.compose("batch", "model=mine", "data=tickets")
    assert job.model.path == "/somewhere"
    assert str(job.data.input).endswith("demo/tickets.jsonl"), "a shipped choice keeps its meaning"


def test_an_option_builds_on_the_option_it_names():
    engine = entry.compose("batch", "model=demo", "data=tickets", "engine=tp2_h200").engine
    assert (engine.device.name, engine.tensor_parallel_size, engine.max_num_seqs) == ("cuda", 2, 512)
    assert engine.world_size == 2


def test_shipped_choices_point_at_the_checkout_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    job = entry.compose("batch", "model=demo", "data=tickets")
    assert Path(job.model.path) == CONF.parent / "demo" / "model"
    assert Path(job.data.input) == CONF.parent / "demo" / "tickets.jsonl"


def test_a_later_word_wins_and_compositions_do_not_leak_into_each_other():
    first = entry.compose("batch", "model=demo", "data=tickets", "sampling.seed=1", "sampling.seed=2")
    second = entry.compose("batch", "model=demo", "data=tickets")
    assert (first.sampling.seed, second.sampling.seed) == (2, None)


def test_a_key_wins_over_its_group_wherever_it_stands():
    job = entry.compose("batch", "sampling.temperature=0.1", "sampling=creative", "model=demo", "data=tickets")
    assert (job.sampling.temperature, job.sampling.top_p) == (0.1, 0.95)


@pytest.mark.parametrize(
    "statement",
    [
        "from conf.entry import compose; compose('batch', 'model=demo', 'data=tickets')",
        "from conf.cli import main; assert main(['batch', '--help']) == 0",
        "from conf.cli import main; assert main(['--complete', 'manta batch m']) == 0",
    ],
)
def test_a_fresh_interpreter_stays_light(statement: str):
    code = f"{statement}\nimport sys\nprint('loaded', [m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONF.parent, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize(
    "values,named",
    [
        ({"prompt": "p"}, "data.input"),
        ({"input": [], "prompt": "p"}, "data.input"),
        ({"input": "", "prompt": "p"}, "data.input"),
        ({"input": ["a", ""], "prompt": "p"}, "data.input"),
        ({"input": ["a", 1], "prompt": "p"}, "data.input"),
        ({"input": "a"}, "data.prompt"),
        ({"input": "a", "prompt": "p", "prompt_file": "f"}, "data.prompt and data.prompt_file"),
        ({"input": "a", "prompt": "p", "messages": "m"}, "data.prompt and data.messages"),
        ({"input": "a", "messages": "m", "system": "s"}, "data.system"),
    ],
)
def test_data_that_cannot_be_asked_is_refused(values: dict[str, Any], named: str):
    with pytest.raises(UserError) as caught:
        DataSpec(**{"input": None, **values}).check(Task.generate)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["prompt", "prompt_file", "messages"])
def test_one_source_of_prompts_passes(source: str):
    DataSpec(input=["a", "b"], **{source: "x"}).check(Task.generate)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("document", [None, "{{ d }}"])
def test_a_second_text_goes_with_scores_and_with_nothing_else(task: Task, document: str | None):
    spec = DataSpec(input="a", prompt="p", document=document)
    if (task is Task.score) == (document is not None):
        spec.check(task)
    else:
        with pytest.raises(UserError, match=f"^data.document.*task={task.value}"):
            spec.check(task)


@pytest.mark.parametrize("key", ["prompt", "prompt_file", "messages", "system", "adapter", "id", "answer"])
def test_a_file_of_requests_says_itself_what_is_asked(key: str):
    DataSpec(input="a", format=DataFormat.openai_batch).check(Task.generate)
    with pytest.raises(UserError, match=rf"^data\.{key} has no use"):
        DataSpec(input="a", format=DataFormat.openai_batch, **{key: "x"}).check(Task.generate)


def test_enums_and_properties_arrive_typed():
    job: BatchJob = compose_filled("batch", "data.format=csv", "engine.max_num_seqs=7")
    assert job.data.format is DataFormat.csv
    assert job.engine.in_flight_rows == 14
    assert compose_filled("batch", "engine.max_in_flight=3").engine.in_flight_rows == 3
    assert compose_filled("batch", "data.input=[a,b]").data.inputs == ["a", "b"]


def test_a_verb_that_takes_what_another_takes_chooses_from_its_groups():
    assert entry.groups("plan") == entry.groups("batch")
    assert "model" in entry.groups("plan")
