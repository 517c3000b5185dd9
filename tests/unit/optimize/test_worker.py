from __future__ import annotations

from pathlib import Path

import pytest

from conf.schema.distill import DistillSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.worker import Share, publish, share_of

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
