"""A service of several models, looked at before anything starts, and changed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from conf import entry
from conf.errors import UserError
from conf.schema.engine import Device
from conf.schema.serve import ProxyForm, ServeJob
from serve.capacity import check_room
from serve.plan import ServicePlan, catalogue_of, make_plan
from serve.router.proxy import decide_form
from serve.surge import surges
from serve.update import changes, keeping

SMALL = "deployment.models.small"
TWO = (f"{SMALL}.model=demo", f"{SMALL}.model.name=small")


def plan(*words: str) -> ServicePlan:
    return make_plan(entry.compose("serve", "model=demo", "access.open=true", *words), is_update=True)


def test_each_model_is_planned_as_if_it_were_alone():
    made = plan(*TWO, f"{SMALL}.engine=tp2_cpu", f"{SMALL}.engine.num_replicas=2", f"{SMALL}.engine.max_model_len=64")
    first, small = made.parts
    assert (first.app, small.app) == ("manta", "manta.small")
    assert (first.num_replicas, small.num_replicas) == (1, 2)
    assert (first.placement.bundles, small.placement.bundles) == ([{"CPU": 1.0}], [{"CPU": 2.0}])
    assert (small.names, small.max_model_len, small.job.deployment.models) == (["small"], 64, {})
    assert {first.share, small.share} == {3}
    assert first.version != small.version
    alone = plan("model.name=small", "engine=tp2_cpu", "engine.num_replicas=2", "engine.max_model_len=64")
    assert [path for path, _ in small.layers] == [path for path, _ in alone.layers]


def test_answers_of_models_are_kept_apart():
    first, small = plan(*TWO, f"{SMALL}.model.dtype=float32").parts
    prints = [next(o["fingerprint"] for path, o in part.layers if "cache" in path) for part in (first, small)]
    assert prints[0] != prints[1]


def test_paths_of_further_models_are_absolute_and_survive_a_file(demo_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(demo_model.parent)
    made = plan(f"{SMALL}.model.path=model", f"{SMALL}.model.name=small")
    assert made.job.deployment.models["small"].model.path == str(demo_model)
    again = make_plan(msgspec.json.decode(msgspec.json.encode(made.job), type=ServeJob), is_update=True)
    assert again.job == made.job


@pytest.mark.parametrize(
    "words,named",
    [
        ([f"{SMALL}.model=demo"], f"{SMALL}.model and model are both called 'demo'"),
        (
            [*TWO, "deployment.models.b.model=demo", "deployment.models.b.model.name=small"],
            "deployment.models.b.model and",
        ),
        ([*TWO, f"{SMALL}.engine=fake"], f"{SMALL}.engine.kind must be vllm"),
        ([*TWO, f"{SMALL}.engine.num_replicas=0..2"], f"{SMALL}.engine.num_replicas must be 1 at least"),
        ([*TWO, f"{SMALL}.task=classify"], f"{SMALL}.task=classify"),
        ([*TWO, f"{SMALL}.engine.vllm.max_modellen=3"], f"{SMALL}.engine.vllm.max_modellen"),
        ([*TWO, f"{SMALL}.vllm.api_key=x"], f"{SMALL}.vllm.api_key"),
        ([f"{SMALL}.model.path=/nope"], f"{SMALL}.model.path=/nope"),
    ],
)
def test_a_mistake_in_a_further_model_is_named_by_its_whole_key(words: list[str], named: str):
    with pytest.raises(UserError) as caught:
        plan(*words)
    assert named in str(caught.value)


def test_an_adapter_s_name_is_no_other_model_s(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(UserError, match=r"small\.model\.adapters\.demo and model are both called 'demo'"):
        plan(*TWO, f"{SMALL}.model.adapters.demo={tmp_path}")
    made = plan(*TWO, f"{SMALL}.model.adapters.tuned={tmp_path}")
    told = catalogue_of(made)
    assert [(entry.name, entry.parent) for entry in told.entries] == [
        ("demo", None), ("small", None), ("tuned", "small")
    ]  # fmt: skip
    assert told.prefixes == {"small": "/_model/small", "tuned": "/_model/small"}


def test_all_models_together_must_fit():
    made = plan(*TWO, f"{SMALL}.engine=tp2_cpu")
    check_room(made, {"CPU": 3.0})
    with pytest.raises(UserError, match=r"all 2 models together need 3 CPU, the cluster has 2"):
        check_room(made, {"CPU": 2.0})
    gpus = made.others[0].on_device(Device.cuda)
    assert gpus.placement.total["GPU"] == 2


def test_haproxy_has_one_model_behind_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"deployment\.proxy=direct needs one model"):
        decide_form(plan(*TWO, "deployment.proxy=direct").job, tmp_path)
    assert decide_form(plan(*TWO, "deployment.proxy=auto").job, tmp_path) is ProxyForm.plain
    with pytest.raises(UserError, match=r"deployment\.models needs deployment\.proxy=plain"):
        plan(*TWO).behind(ProxyForm.direct)


def test_an_update_names_models_that_come_and_go_and_the_keys_of_those_that_stay():
    two, more = plan(*TWO).job, plan(*TWO, f"{SMALL}.engine.num_replicas=2").job
    assert changes(plan().job, two) == [f"{SMALL}: (none) -> small"]
    assert changes(two, plan().job) == [f"{SMALL}: small -> (none)"]
    assert changes(two, more) == [f"{SMALL}.engine.num_replicas: 1 -> 2"]
    assert changes(two, plan(*TWO).job) == []


@pytest.mark.parametrize(
    "old,new,changed",
    [
        ((), TWO, {"small"}),
        (TWO, (), set()),
        (TWO, TWO, set()),
        (TWO, (*TWO, f"{SMALL}.engine.max_num_seqs=9"), {"small"}),
        (TWO, (*TWO, "engine.max_num_seqs=9"), {""}),
        (TWO, (*TWO, "access.max_sequences=9"), {"", "small"}),
    ],
)
def test_an_update_replaces_the_replicas_of_those_models_that_differ(old: tuple, new: tuple, changed: set[str]):
    before = plan(*old)
    after = keeping(before, plan(*new))
    assert surges(before, after, {"CPU": 99.0}).keys() == changed


def test_an_update_has_room_for_all_that_starts():
    before = plan(*TWO)
    both = keeping(before, plan(*TWO, "access.max_sequences=9"))
    assert surges(before, both, {"CPU": 2.0}) == {"": 100, "small": 100}
    with pytest.raises(UserError, match=r"no room for a replica of deployment\.models\.small"):
        surges(before, both, {"CPU": 1.0})
    added = keeping(before, plan(*TWO, "deployment.models.b.model.name=b", "deployment.models.b.model=demo",
                                 "deployment.models.b.engine.num_replicas=3"))  # fmt: skip
    assert surges(before, added, {"CPU": 3.0}) == {"b": 100}
    with pytest.raises(UserError, match=r"no room for 3 replicas of deployment\.models\.b"):
        surges(before, added, {"CPU": 2.0})
