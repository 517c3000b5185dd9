"""What `ray up` reads, held against Ray's own schema and code, and the clouds' own descriptions of a machine."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from fleets import LAUNCHED, rendered

SCHEMA_CHANGES: list[tuple[str, Any]] = [
    ("cluster_nme", "x"),
    ("max_workers", "12"),
    ("auth", {"ssh_usr": "ubuntu"}),
    ("docker", {"images": "x"}),
    ("available_node_types", {"head": {"resources": {"CPU": 1.5}, "node_config": {}}}),
    ("available_node_types", {"head": {"resources": {}, "node_config": {}, "spot": True}}),
]


def schema() -> dict[str, Any]:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_s_schema_and_its_launcher_take_the_file(name: str):
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = rendered(name)["cluster"]
    jsonschema.validate(config, schema())
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    for key, value in config.items():  # nothing is dropped or replaced by a default of Ray's
        if key not in ("available_node_types", "docker"):
            assert prepared[key] == value, key
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []


@pytest.mark.parametrize("key, value", SCHEMA_CHANGES)
def test_ray_s_schema_refuses_what_is_wrong(key: str, value: Any):
    import jsonschema

    config = rendered("aws")["cluster"] | {key: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, schema())


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_asks_for_a_token_and_the_dashboard_is_the_head_s_alone(name: str):
    config = rendered(name)["cluster"]
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert all(command.startswith("export RAY_AUTH_MODE=token && ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in starts[0]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_ray_counts_on_a_gpu_by_the_name_that_it_will_find_there(name: str):
    kinds = rendered(name)["cluster"]["available_node_types"]
    for kind in ("gpu_spot", "gpu_on_demand"):
        resources = kinds[kind]["resources"]
        assert (resources["GPU"], resources["accelerator_type:L4"], resources["CPU"]) == (1, 1, 8)
    assert "GPU" not in kinds["head"]["resources"]


def test_a_kind_without_a_gpu_runs_the_cpu_image_beside_kinds_with_one():
    words = ["fleet.workers.cpu.instance=m7i.2xlarge", "fleet.image.cpu=r/m:1-cpu", "fleet.image.gpu=r/m:1-gpu"]
    config = rendered("aws", *words)["cluster"]
    assert config["docker"]["worker_image"] == "r/m:1-gpu"
    docker = {name: kind.get("docker") for name, kind in config["available_node_types"].items()}
    assert docker == {"head": None, "gpu_spot": None, "gpu_on_demand": None, "cpu": {"worker_image": "r/m:1-cpu"}}


def launched(config: dict[str, Any], failed: tuple[str, ...] = (), **label: str) -> dict[str, int]:
    """What Ray's autoscaler starts for one GPU, where kinds that failed a moment ago count as not to be had."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    read = AutoscalingConfig(configs=config, skip_content_hash=True)
    wanted = ResourceRequestUtil.make({"GPU": 1}, label_selectors=[selector(label)] if label else None)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=read.get_node_type_configs(),
            max_num_nodes=read.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([wanted]),
            cloud_resource_availabilities=dict.fromkeys(failed, 0.0),
            recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
        )
    )
    return {request.instance_type: request.count for request in reply.to_launch if request.instance_type != "head"}


def selector(label: dict[str, str]) -> list[tuple[str, int, list[str]]]:
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    is_in = LabelSelectorOperator.Value("LABEL_OPERATOR_IN")
    return [(key.replace("_", "-"), is_in, [value]) for key, value in label.items()]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_spot_machine_is_started_first_and_an_on_demand_one_where_none_is_to_be_had(name: str):
    config = rendered(name)["cluster"]
    assert launched(config) == {"gpu_spot": 1}
    assert launched(config, failed=("gpu_spot",)) == {"gpu_on_demand": 1}


def test_the_priority_decides_and_not_the_order():
    config = rendered("aws", "fleet.workers.gpu_on_demand.priority=20")["cluster"]
    assert launched(config) == {"gpu_on_demand": 1}


def test_a_request_can_name_the_market():
    assert launched(rendered("aws")["cluster"], market_type="on-demand") == {"gpu_on_demand": 1}


def test_a_machine_is_what_ec2_s_description_allows():
    """Against the model of EC2's API that botocore ships: names, types, and that nothing else stands there."""
    pytest.importorskip("botocore")
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    shape = ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model("RunInstances").input_shape
    words = ["fleet.aws.instance_profile=arn:aws:iam::123456789012:instance-profile/manta"]
    for kind in rendered("aws", *words)["cluster"]["available_node_types"].values():
        report = ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), report.generate_report()
        unknown = set(kind["node_config"]) - set(shape.members)
        assert not unknown
        assert kind["node_config"]["InstanceType"] in shape.members["InstanceType"].enum


def test_a_machine_is_what_compute_engine_s_description_allows():
    """Against the discovery document that google-api-python-client ships."""
    found = importlib.util.find_spec("googleapiclient")
    if found is None or found.origin is None:
        pytest.skip("google-api-python-client is not installed")
    document = Path(found.origin).parent / "discovery_cache" / "documents" / "compute.v1.json"
    schemas = json.loads(document.read_text())["schemas"]
    for name, kind in rendered("gcp")["cluster"]["available_node_types"].items():
        assert list(unknown_to_google(kind["node_config"], schemas["Instance"], schemas, name)) == []
    wrong = {"scheduling": [{"provisioningModel": "SPOOT"}], "disk": []}
    assert len(list(unknown_to_google(wrong, schemas["Instance"], schemas, "x"))) == 2


def unknown_to_google(value: Any, schema: dict[str, Any], schemas: dict[str, Any], path: str) -> list[str]:
    """What a discovery document does not allow."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    if "properties" in schema:
        if not isinstance(value, dict):
            return [f"{path}: no object"]
        return [
            line
            for key, item in value.items()
            for line in (
                unknown_to_google(item, schema["properties"][key], schemas, f"{path}.{key}")
                if key in schema["properties"]
                else [f"{path}.{key}: no such field"]
            )
        ]
    if schema.get("type") == "array":
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [line for item in value for line in unknown_to_google(item, schema["items"], schemas, path)]
    kinds: dict[str, type | tuple[type, ...]] = {"string": (str, int), "boolean": bool, "integer": int}
    wanted = kinds.get(schema.get("type", ""), object)
    if not isinstance(value, wanted) or ("enum" in schema and value not in schema["enum"]):
        return [f"{path}: {value!r}"]
    return []
