from __future__ import annotations

from pathlib import Path

import pytest

from conf.schema.distill import DistillSpec
from conf.schema.recipe import RecipeSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.artifact import Artifact
from pipelines.optimize.chain import fingerprint_folder, link_steps
from pipelines.optimize.worker import Share, is_published, publish, share_of

DISTILL = StepSpec(kind=StepKind.distill)
TOGETHER = StepSpec(kind=StepKind.distill, distill=DistillSpec(num_workers=2))


@pytest.mark.parametrize(
    "spec,resources,share",
    [
        (DISTILL, {"CPU": 2.0}, Share(num_cpus=2.0, num_gpus=0.0)),
        (DISTILL, {"CPU": 64.0, "GPU": 2.0}, Share(num_cpus=8.0, num_gpus=1.0)),
        (DISTILL, {}, Share(num_cpus=1.0, num_gpus=0.0)),
        (TOGETHER, {"CPU": 64.0, "GPU": 2.0}, Share(num_cpus=0.0, num_gpus=0.0)),
    ],
)
def test_a_step_takes_what_there_is_and_leaves_room_for_its_own_workers(spec: StepSpec, resources: dict, share: Share):
    assert share_of(spec, resources) == share


def test_a_result_replaces_the_one_before_it_and_leaves_folders_alone(tmp_path: Path):
    source, target = tmp_path / "step", tmp_path / "out"
    source.mkdir()
    (target / "_manta").mkdir(parents=True)
    (target / "stale.safetensors").touch()
    for name in ("artifact.json", "config.json"):
        (source / name).write_text(name)
    publish(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["_manta", "artifact.json", "config.json"]
    assert (target / "artifact.json").read_text() == "artifact.json"


def test_a_result_is_published_once_and_again_where_it_was_changed(tmp_path: Path):
    (link,) = link_steps(RecipeSpec(steps={"bits": StepSpec(kind=StepKind.quantize)}), "f", None, 0, tmp_path / "steps")
    link.folder.mkdir(parents=True)
    (link.folder / "config.json").write_text("{}")
    fingerprint = fingerprint_folder(link.folder)
    what = {"key": link.key, "form": link.form, "step": link.name, "spec": {}, "parent": "f", "model": "demo"}
    Artifact(**what, fingerprint=fingerprint, seconds=0.0, versions={}).write(link.folder)
    target = tmp_path / "out"
    assert not is_published(link, target)
    publish(link.folder, target)
    (target / "card.json").write_text("{}")
    assert is_published(link, target)
    (target / "config.json").write_text("{ }")
    assert not is_published(link, target)
