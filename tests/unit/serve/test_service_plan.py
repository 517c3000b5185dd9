from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.ports import free_ports
from conf import entry
from conf.errors import UserError
from conf.schema.engine import Device
from conf.schema.serve import DeploymentSpec, ProxyForm
from serve.capacity import check_room
from serve.cause import cause_of
from serve.engine.arguments import api_argument_names
from serve.plan import ServicePlan, make_plan


def plan(*words: str) -> ServicePlan:
    return make_plan(
        entry.compose("serve", "model=demo", "access.open=true", f"deployment.port={free_ports(1)[0]}", *words)
    )


@pytest.mark.parametrize(
    "values,named",
    [
        ({"name": ""}, "deployment.name"),
        ({"name": "a/b"}, "deployment.name"),
        ({"name": "x" * 64}, "deployment.name"),
        ({"host": ""}, "deployment.host"),
        ({"port": 0}, "deployment.port"),
        ({"port": 65536}, "deployment.port"),
        ({"grpc_port": 0}, "deployment.grpc_port"),
        ({"grpc_port": 8000}, "deployment.grpc_port"),
        ({"grpc_port": 9000, "proxy": ProxyForm.direct}, "deployment.grpc_port needs deployment.proxy=plain"),
        ({"max_ongoing_requests": 0}, "deployment.max_ongoing_requests"),
        ({"max_queued_requests": -1}, "deployment.max_queued_requests"),
        ({"request_timeout_s": 0.0}, "deployment.request_timeout_s"),
        ({"request_timeout_s": float("nan")}, "deployment.request_timeout_s"),
        ({"drain_s": -1.0}, "deployment.drain_s"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_by_its_key(values: dict[str, Any], named: str):
    with pytest.raises(UserError, match=f"^{named} .*got"):
        DeploymentSpec(**values)


@pytest.mark.parametrize(
    "word,named",
    [
        ("engine=fake", "engine.kind must be vllm"),
        ("engine.num_replicas=0", "engine.num_replicas must be a number >= 1, or MIN..MAX"),
        ("engine=planned", "engine.sizing=planned"),
        ("engine.vllm.max_modellen=3", "did you mean 'max_model_len'"),
        ("deployment.vllm.tool_parser=hermes", "deployment.vllm.tool_parser"),
        ("deployment.vllm.api_key=x", "deployment.vllm.api_key"),
        ("deployment.vllm.middleware=[x]", "deployment.vllm.middleware"),
        ("deployment.vllm.lora_modules=[x]", "deployment.vllm.lora_modules"),
        ("deployment.vllm.enable_auto_tool_choice=true", "needs deployment.vllm.tool_call_parser"),
        ("engine.tensor_parallel_size=3", "engine.tensor_parallel_size must divide"),
        ("engine.max_model_len=1000000", "engine.max_model_len"),
        ("task=classify", "task=classify"),
        ("model.path=/nope", "model.path=/nope"),
        ("model.adapters.demo=/nope", "model.adapters.demo"),
        ("deployment.host=no.such.host.invalid", "deployment.host=no.such.host.invalid"),
    ],
)
def test_a_mistake_is_found_before_anything_starts(word: str, named: str):
    with pytest.raises(UserError) as caught:
        plan(word)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word,named",
    [
        ("autoscale.max_replicas=9", "autoscale.max_replicas is manta simulate's: here engine.num_replicas=0..4"),
        ("deployment.proxy=direct", "engine.num_replicas=0..4 needs deployment.proxy=plain"),
        ("task=embed", "autoscale=forecast with task=embed needs autoscale.prefill_tokens_per_s"),
        ("autoscale.decode_tokens_per_s=0", "autoscale.decode_tokens_per_s must be > 0 or null, got 0"),
    ],
)
def test_a_mistake_in_how_it_scales_is_found_as_early(word: str, named: str):
    with pytest.raises(UserError) as caught:
        plan("engine.num_replicas=0..4", word)
    assert named in str(caught.value)


def test_a_service_that_scales_begins_with_one_replica_at_least_and_room_for_more_is_no_condition():
    made = plan("engine.num_replicas=0..4")
    assert made.num_replicas == 1
    assert [made.sized(size).num_replicas for size in (0, 3, 9)] == [1, 3, 4]
    assert check_room(made, {"CPU": 4.0}) is None
    assert "room for 2" in (check_room(made, {"CPU": 2.0}) or "")
    with pytest.raises(UserError, match=r"num_replicas=0..4 .*the cluster has 0.5"):
        check_room(made, {"CPU": 0.5})


@pytest.mark.parametrize("key", ["data=tickets", "sampling.max_tokens=3", "output.path=x", "batch.dedupe=all"])
def test_what_belongs_to_a_job_is_no_key_of_a_service(key: str):
    with pytest.raises(UserError, match=key.partition("=")[0]):
        entry.compose("serve", "model=demo", key)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=f"deployment.port={taken.getsockname()[1]}"):
            plan(f"deployment.port={taken.getsockname()[1]}")
        with pytest.raises(UserError, match=f"deployment.grpc_port={taken.getsockname()[1]}"):
            plan(f"deployment.grpc_port={taken.getsockname()[1]}")


def test_a_model_without_a_name_is_called_like_its_folder(demo_model: Path):
    job = entry.compose("serve", f"model.path={demo_model}/", "access.open=true", f"deployment.port={free_ports(1)[0]}")
    assert make_plan(job).job.model.name == "model"
    assert entry.compose("serve", f"model.path={demo_model}", "model.name=x").model.name == "x"


def test_paths_are_absolute_for_workers_elsewhere(demo_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(demo_model.parent)
    made = plan("model.path=model")
    assert made.job.model.path == str(demo_model)
    assert made.logs == demo_model.parent / "out" / "serve-manta"


@pytest.mark.parametrize(
    "host,url", [("0.0.0.0", "http://127.0.0.1:9"), ("::", "http://[::1]:9"), ("10.1.2.3", "http://10.1.2.3:9")]
)
def test_the_url_is_one_that_this_machine_reaches(
    host: str, url: str, demo_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MANTA_API_KEYS", "secret")
    job = entry.compose(
        "serve", f"model.path={demo_model}", f"deployment.host={host}", "deployment.port=9", "cluster=existing"
    )
    assert make_plan(job).url == url


def test_a_partitioned_replica_asks_for_all_of_its_devices():
    made = plan("engine=tp2_cpu", "engine.num_replicas=2")
    assert made.placement.bundles == [{"CPU": 2.0}]
    assert made.on_device(Device.cuda).placement.total == {"CPU": 1.0, "GPU": 2.0}
    check_room(made, {"CPU": 4.0})
    with pytest.raises(UserError, match=r"engine.num_replicas=2 .*need 4 CPU.*has 3"):
        check_room(made, {"CPU": 3.0})


def test_a_replica_holds_what_its_engine_is_given_unless_told_otherwise():
    assert plan("engine.max_num_seqs=7").job.max_ongoing_requests == 14
    assert plan("deployment.max_ongoing_requests=3").job.max_ongoing_requests == 3


def test_the_api_s_arguments_are_read_from_vllm_s_source():
    assert {"tool_call_parser", "enable_auto_tool_choice", "chat_template_content_format"} <= api_argument_names()
    assert not {"host", "port", "api_key", "middleware", "ssl_keyfile", "root_path"} & api_argument_names()


def test_the_cause_of_a_failed_start_is_the_last_error_that_serve_quotes():
    message = """The deployment failed to start 1 times in a row. Error:
Traceback (most recent call last):
  File "x.py", line 1, in f
ValueError: no such file

The above exception was the direct cause of the following exception:

serve.engine.errors.EngineDead: vLLM did not start: ValueError: no such file"""
    assert cause_of(["", message]).endswith("EngineDead: vLLM did not start: ValueError: no such file")
    assert cause_of(["", "something else"]) == "something else"
    assert cause_of([]) == "no reason given"
