from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conf import entry
from conf.errors import UserError
from conf.schema.model import ModelSpec
from conf.schema.quantize import QuantizeSpec, Scheme
from conf.schema.recipe import RecipeSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.artifact import Artifact, Form, read_artifact
from pipelines.optimize.chain import Link, check_parent, find_done, fingerprint_folder, link_steps
from serve.engine.fingerprint import fingerprint_model

PRUNE, DISTILL = StepSpec(kind=StepKind.prune), StepSpec(kind=StepKind.distill)
W8A8 = StepSpec(kind=StepKind.quantize)
FP8 = StepSpec(kind=StepKind.quantize, quantize=QuantizeSpec(scheme=Scheme.fp8))
STATIC = StepSpec(kind=StepKind.quantize, quantize=QuantizeSpec(scheme=Scheme.w8a8_static))


def keys(*steps: StepSpec, fingerprint: str = "f", rows: str | None = "r", seed: int = 0) -> list[str]:
    recipe = RecipeSpec(steps={f"s{number}": step for number, step in enumerate(steps)})
    return [link.key for link in link_steps(recipe, fingerprint, rows, seed, Path("store"))]


def test_a_key_says_all_that_decides_a_result():
    one = keys(PRUNE, STATIC)
    assert one == keys(PRUNE, STATIC)
    assert len(set(one)) == 2
    assert keys(PRUNE, FP8)[0] == one[0]
    assert keys(PRUNE, FP8)[1] != one[1]
    for other in (keys(PRUNE, STATIC, fingerprint="g"), keys(PRUNE, STATIC, rows="q"), keys(PRUNE, STATIC, seed=1)):
        assert other[1] != one[1]


def test_rows_decide_nothing_where_none_are_needed():
    assert keys(W8A8, rows=None) == keys(W8A8, rows="r") == keys(W8A8, rows="r", seed=3)
    assert keys(STATIC, rows="r") != keys(STATIC, rows="q")


def test_what_a_step_ignores_is_not_in_its_key():
    step = StepSpec(kind=StepKind.prune, quantize=QuantizeSpec(scheme=Scheme.fp8))
    assert keys(step) == keys(PRUNE)


@pytest.mark.parametrize(
    "steps,named",
    [
        ({}, "recipe.steps must hold a step"),
        ({"bits": W8A8, "cut": PRUNE}, "recipe.steps.cut (prune) cannot come after recipe.steps.bits (quantize)"),
        ({"file": StepSpec(kind=StepKind.export), "bits": W8A8}, "recipe.steps.bits (quantize) cannot come after"),
    ],
)
def test_a_recipe_out_of_order_is_refused(steps: dict[str, StepSpec], named: str):
    with pytest.raises(UserError) as caught:
        RecipeSpec(steps=steps).check()
    assert named in str(caught.value)


def test_a_recipe_in_order_passes():
    RecipeSpec(steps={"cut": PRUNE, "learn": DISTILL, "bits": W8A8}).check()


@pytest.mark.parametrize("recipe", sorted(set(entry.options("recipe")) - {"custom"}))
def test_every_shipped_recipe_is_in_order(recipe: str):
    job = entry.compose("optimize", "model=demo", f"recipe={recipe}")
    job.recipe.check()
    assert job.recipe.name == recipe
    assert job.title == f"demo-{recipe}"


@pytest.fixture
def made(tmp_path: Path) -> Link:
    """A step whose result lies in its folder."""
    (link,) = link_steps(RecipeSpec(steps={"bits": W8A8}), "f", None, 0, tmp_path)
    link.folder.mkdir()
    (link.folder / "config.json").write_text("{}")
    (link.folder / "model.safetensors").write_bytes(b"weights")
    Artifact(
        key=link.key,
        form=link.form,
        step=link.name,
        spec=link.spec.settings,
        parent=link.parent,
        model="demo",
        fingerprint=fingerprint_folder(link.folder),
        seconds=1.0,
        versions={},
    ).write(link.folder)
    return link


def test_a_record_comes_back_as_it_was_written(made: Link):
    artifact = read_artifact(made.folder)
    assert artifact is not None
    assert (artifact.key, artifact.form) == (made.key, Form.compressed)
    assert artifact.spec["scheme"] == "w8a8"
    assert find_done(made) == artifact


def test_what_lies_beside_a_checkpoint_is_no_part_of_it(made: Link):
    (made.folder / "card.json").write_text("{}")
    assert find_done(made) is not None


def test_a_result_that_was_changed_is_refused(made: Link):
    (made.folder / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(UserError, match="was changed after it was made"):
        find_done(made)


def test_a_folder_without_a_record_is_not_done(made: Link):
    (made.folder / "artifact.json").unlink()
    assert find_done(made) is None
    shutil.rmtree(made.folder)
    assert find_done(made) is None


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"key": "k"}), json.dumps({"form": "clay"})])
def test_a_record_that_is_none_is_named(made: Link, text: str):
    (made.folder / "artifact.json").write_text(text)
    with pytest.raises(UserError, match=r"artifact\.json cannot be read"):
        read_artifact(made.folder)


def test_a_step_whose_parent_changed_meanwhile_is_not_run(made: Link, tmp_path: Path):
    model = ModelSpec(path=str(made.folder))
    steps = {"cut": PRUNE, "bits": W8A8}
    chain = link_steps(RecipeSpec(steps=steps), fingerprint_model(model), None, 0, tmp_path)
    check_parent(chain, 0, model)
    with pytest.raises(UserError, match=r"cut-.* is gone since this run began"):
        check_parent(chain, 1, model)
    (made.folder / "config.json").write_text('{"hidden_size": 2}')
    with pytest.raises(UserError, match=r"^model\.path=.*: it was changed since this run began"):
        check_parent(chain, 0, model)
    chain = [made, *chain[1:]]
    with pytest.raises(UserError, match="was changed after it was made"):
        check_parent(chain, 1, model)
