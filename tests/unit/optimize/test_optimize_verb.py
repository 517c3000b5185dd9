from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from conf.cli import main
from conf.errors import UserError
from conf.schema.prune import PruneMethod, PruneSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize import check, environment


@pytest.fixture(autouse=True)
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the steps' libraries, as far as it is looked for."""
    site = tmp_path / "site"
    (site / "llmcompressor").mkdir(parents=True)
    monkeypatch.setenv(environment.FOLDER, str(site))
    monkeypatch.chdir(tmp_path)
    return site


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped model, to be spoilt."""
    return Path(shutil.copytree(ROOT / "demo" / "model", tmp_path / "model"))


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["optimize", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_dry_run_lists_the_steps_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ("model=demo", "recipe=w4a16", "data=tickets", "output.path=out", "dry_run=true")
    code, out, err = say(capsys, *words)
    assert (code, err) == (0, "")
    assert out.startswith("1. quantize (quantize): to be done, ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words,named",
    [
        (["recipe=w4a16"], "recipe.steps.quantize (quantize) needs rows: set data.input"),
        (["recipe=custom"], "recipe.steps must hold a step"),
        (["recipe=w4a15"], "no option 'w4a15' of recipe; did you mean 'w4a16'"),
        (["recipe=w4a16", "data=tickets", "data.limit=5"], "data.input holds 5 rows that can be used"),
        (["recipe=w4a16", "data=tickets", "data.answer=anser"], "did you mean 'answer'"),
        (["recipe=w4a16", "data=tickets", "examples.max_tokens=20"], "left out: "),
        (["name=demo"], "name=demo is that of a shipped model"),
        (["name=a/b"], "name must be letters, digits"),
        (["model.adapters.x=/nowhere"], "model.adapters has no use"),
        (["model.trust_remote_code=true"], "steps run no code"),
        (["recipe=w4a16", "data=tickets", "recipe.steps.quantize.quantize.group_size=96"], "hidden_size=256, got 96"),
        (["recipe.steps.quantize.quantize.kv_cache=true", "data=tickets"], "needs an NVIDIA GPU"),
        (["output=jsonl"], "'output' is a group of keys"),
        (
            ["recipe=width", "data=tickets", "recipe.steps.prune.prune.ffn=0.99"],
            "prune: prune.ffn=0.99 keeps all",
        ),
        (["recipe=depth", "data=tickets", "recipe.steps.prune.prune.layers=0.9"], "prune.layers=0.9 keeps all of 4"),
        (["recipe=distill", "data=tickets"], "distill has nothing to learn as a recipe's first step"),
        (["recipe=distill", "data=tickets", "recipe.steps.distill.distill.teacher=/nowhere"], "/nowhere/config.json"),
        (
            ["recipe=custom", "+step/quantize@recipe.steps.a=w8a8", "+step/prune@recipe.steps.b=magnitude"],
            "recipe.steps.b (prune) cannot come after recipe.steps.a (quantize)",
        ),
        (
            [
                *("recipe=custom", "data=tickets"),
                *("+step/prune@recipe.steps.a=width_half", "recipe.steps.a.prune.multiple=8"),
                *("+step/quantize@recipe.steps.b=w4a16", "recipe.steps.a.prune.ffn=0.1"),
            ],
            "recipe.steps.b: quantize.scheme=w4a16 needs layers in multiples of 32, or vLLM has no kernel here: gate_",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], named: str
):
    monkeypatch.setattr(check, "local_devices", lambda: 0)
    code, out, err = say(capsys, "model=demo", "output.path=out", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert named in err
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_kind_or_shape_is_refused_before_it_is_loaded(
    model: Path, capsys: pytest.CaptureFixture[str]
):
    def change(**changes: object) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **changes}))

    change(hidden_size=254)
    code, _, err = say(capsys, f"model.path={model}", "recipe=sparse_2of4", "data=tickets")
    assert code == 2
    assert "recipe.steps.prune: prune.pattern=two_of_four needs inputs that are multiples of 4, got 254" in err
    change(model_type="gpt2")
    assert "knows the models llama, " in say(capsys, f"model.path={model}", "recipe=depth", "data=tickets")[2]


def test_libraries_that_are_not_installed_are_told_of(libraries: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(libraries)
    code, _, err = say(capsys, "model=demo")
    assert code == 2
    assert "run 'make optimize'" in err


@pytest.mark.parametrize("method", PruneMethod)
def test_only_what_calibrates_needs_the_libraries(method: PruneMethod, libraries: Path):
    shutil.rmtree(libraries)
    shares = {PruneMethod.depth: {"layers": 0.5}, PruneMethod.width: {"ffn": 0.5}}
    step = StepSpec(kind=StepKind.prune, prune=PruneSpec(method=method, **shares.get(method, {})))
    if method in (PruneMethod.wanda, PruneMethod.sparsegpt):
        with pytest.raises(UserError, match="run 'make optimize'"):
            environment.check_site("prune", step)
    else:
        environment.check_site("prune", step)


def test_an_extra_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name == "xllamacpp" else name)
    code, _, err = say(capsys, "model=demo", "recipe=gguf")
    assert code == 2
    assert err.endswith("recipe.steps.export needs xllamacpp, an extra: run 'make gguf'\n")


def test_a_model_that_is_quantized_already_is_refused(model: Path, capsys: pytest.CaptureFixture[str]):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    code, _, err = say(capsys, f"model.path={model}")
    assert code == 2
    assert "it is quantized already" in err


def test_a_model_that_memory_cannot_hold_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check, "host_memory_bytes", lambda: 10 << 20)
    code, _, err = say(capsys, f"model.path={model}")
    assert code == 2
    assert "this machine has 0.0 GiB" in err
    (model / "model.safetensors").unlink()
    assert "no *.safetensors in it" in say(capsys, f"model.path={model}")[2]


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    code, _, err = say(capsys, "model=demo", "output.path=out")
    assert code == 2
    assert "it holds other files, such as thesis.txt" in err
    (tmp_path / "file").touch()
    assert "it is a file" in say(capsys, "model=demo", "output.path=file")[2]
