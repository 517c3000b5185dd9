from __future__ import annotations

import json
import socket
from pathlib import Path

import msgspec
import pytest

from cluster.own_file import write_own
from cluster.process import this_process
from conf import entry
from conf.errors import UserError
from conf.schema.serve import ServeJob
from serve.plan import ServicePlan, make_plan
from serve.state import Phase, ServiceState, claimed, read_state
from serve.surge import surge_percent
from serve.update import changes, hand_over, take_update


def job(*words: str) -> ServeJob:
    return entry.compose("serve", "model=demo", "access.open=true", *words)


def plan(*words: str) -> ServicePlan:
    return make_plan(job(*words), is_update=True)


def test_what_differs_is_named_with_both_values():
    new = job("engine.num_replicas=2", "deployment.vllm.x=3", "cache=off", "deployment.detach=true")
    assert changes(job(), new) == [
        "cache.kind: memory -> off",
        "deployment.vllm.x: (unset) -> 3",
        "engine.num_replicas: 1 -> 2",
    ]
    assert changes(new, new) == []


@pytest.mark.parametrize("word", ["deployment.port=9", "deployment.host=::1", "cluster.num_cpus=3"])
def test_what_holds_for_a_service_s_life_is_refused(word: str):
    with pytest.raises(UserError, match=rf"{word.partition('=')[0]} cannot change .*manta serve stop manta"):
        changes(job(), job(word))


@pytest.mark.parametrize(
    "old,new,free,percent",
    [
        (1, 1, 1.0, 100),
        (1, 4, 2.0, 50),
        (3, 3, 1.0, 33),  # Ray Serve rounds up, to one
        (1, 2, 9.0, 100),
        (2, 2, 0.0, 0),
    ],
)
def test_as_many_start_beside_the_old_ones_as_there_is_room_for(old: int, new: int, free: float, percent: int):
    pair = (plan(f"engine.num_replicas={old}"), plan(f"engine.num_replicas={new}"))
    assert surge_percent(*pair, {"CPU": free}) == percent


@pytest.mark.parametrize("old,new", [("engine.num_replicas=1", ""), ("engine.num_replicas=2", "engine=tp2_cpu")])
def test_without_room_an_update_says_what_it_lacks_and_what_else_there_is(old: str, new: str):
    with pytest.raises(UserError, match=r"no room.*CPU \(0\.5 free\).*deployment\.update=replace"):
        surge_percent(plan(old), plan(*filter(None, [new])), {"CPU": 0.5})


def test_a_job_is_the_same_after_its_way_through_a_file():
    made = plan("engine=tp2_cpu", "engine.vllm.seed=3", "cache=redis", "task=generate").job
    assert msgspec.json.decode(msgspec.json.encode(made), type=ServeJob) == made


@pytest.mark.parametrize("phase", [Phase.starting, Phase.updating, Phase.draining])
def test_a_service_that_is_busy_takes_no_update(phase: Phase, tmp_path: Path):
    state = ServiceState(process=this_process(), since="", url="", logs="", phase=phase, job=job())
    with pytest.raises(UserError, match=f"is {phase.value}"):
        hand_over(tmp_path, state, plan())


@pytest.mark.parametrize(
    "data", [b"", b"?", b"{}", json.dumps({"id": "a", "job": {"deployment": {"port": 0}}}).encode()]
)
def test_an_update_that_cannot_be_read_is_none_and_is_gone(data: bytes, tmp_path: Path):
    with claimed(tmp_path / "s", "a"):
        write_own(tmp_path / "s" / "a.update.json", data)
        assert take_update(tmp_path / "s", "a") is None
        assert read_state(tmp_path / "s", "a") is None
        assert [path.name for path in (tmp_path / "s").iterdir()] == ["a.lock"]


def test_a_port_in_use_is_no_mistake_of_an_update():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert plan(f"deployment.port={taken.getsockname()[1]}").job.deployment.port == taken.getsockname()[1]
