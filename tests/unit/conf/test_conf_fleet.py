"""The rules of a real cluster's configuration."""

from __future__ import annotations

import pytest

from conf import entry
from conf.errors import UserError
from conf.schema.fleet import FleetSpec
from conf.schema.node_type import NodeTypeSpec


def fleet_of(*words: str) -> FleetSpec:
    fleet: FleetSpec = entry.compose("render", *words).fleet
    fleet.check()
    return fleet


@pytest.mark.parametrize("name", entry.options("fleet"))
def test_every_shipped_cluster_keeps_the_rules(name: str):
    fleet = fleet_of(f"fleet={name}")
    assert fleet.head.hardware == "cpu"
    assert all(node.num_devices or node.topology for node in fleet.workers.values())


def test_a_kind_of_worker_is_added_by_words():
    fleet = fleet_of("fleet=aws", *(f"fleet.workers.big.{w}" for w in ("instance=p5.48xlarge", "hardware=h100")), BIG)
    assert list(fleet.workers) == ["gpu_spot", "gpu_on_demand", "big"]
    assert fleet.workers["big"] == NodeTypeSpec(instance="p5.48xlarge", hardware="h100", num_devices=8)


BIG = "fleet.workers.big.num_devices=8"
SPOT = "fleet.workers.gpu_spot"


@pytest.mark.parametrize(
    "words, said",
    [
        (["fleet=aws", "fleet.name=Manta"], "fleet.name must be a letter, then small letters"),
        (["fleet=aws", "fleet.idle_timeout_s=0"], "fleet.idle_timeout_s must be >= 1, got 0"),
        (["fleet=aws", "fleet.head.hardware=l4", "fleet.head.num_devices=1"], "fleet.head.hardware must be cpu"),
        (["fleet=aws", "fleet.image.gpu=manta"], "fleet.image.gpu must have a tag other than latest, got 'manta'"),
        (["fleet=aws", "fleet.image.gpu=r:5000/manta:latest"], "fleet.image.gpu must have a tag other than latest"),
        (["fleet=aws", "fleet.aws.image_id=null"], "fleet.aws.image_id must be set"),
        (["fleet=aws", f"{SPOT}.instance=null"], f"{SPOT}.instance must be set with fleet.provider=aws"),
        (["fleet=aws", f"{SPOT}.hardware=h20"], f"{SPOT}.hardware must be a profile, got 'h20'; did you mean"),
        (["fleet=aws", f"{SPOT}.num_devices=0"], f"{SPOT}.num_devices must be >= 1 with {SPOT}.hardware=l4, got 0"),
        (["fleet=aws", f"{SPOT}.hardware=cpu"], f"{SPOT}.num_devices must be 0 with {SPOT}.hardware=cpu, got 1"),
        (["fleet=aws", f"{SPOT}.min_nodes=9"], f"{SPOT}.max_nodes must be >= {SPOT}.min_nodes=9, got 8"),
        (["fleet=aws", f"{SPOT}.disk_gib=5"], f"{SPOT}.disk_gib must be >= 20, got 5"),
        (["fleet=aws", f"{SPOT}.topology=4x4"], f"{SPOT}.topology is a TPU's"),
        (
            ["fleet=gcp", f"{SPOT}.hardware=tpu_v6e", f"{SPOT}.topology=4x4", f"{SPOT}.num_devices=0"],
            f"{SPOT}.hardware=tpu_v6e needs fleet.provider=kuberay",
        ),
        (["fleet=gcp", "fleet.gcp.zone=europe-west4-a"], "fleet.gcp.zone must be in fleet.gcp.region=us-central1"),
        (["fleet=on_prem", "fleet.on_prem.worker_ips=[]"], "fleet.on_prem.worker_ips must name one machine"),
        (["fleet=on_prem", "fleet.ssh.private_key=null"], "fleet.ssh.private_key must be set"),
        (["fleet=on_prem", "fleet.workers.a.num_cpus=4"], "fleet.workers has no use with fleet.provider=on_prem"),
        (["fleet=kuberay", "fleet.workers.a_b.num_cpus=4"], "fleet.workers.a_b: with fleet.provider=kuberay"),
        (
            ["fleet=kuberay", "fleet.workers.gpu-on-demand.spot=true"],
            "fleet.workers must have one kind with spot=false",
        ),
        (["fleet=kuberay", "fleet.kube.claim=My_Claim"], "fleet.kube.claim must be small letters"),
        (["fleet=kuberay_tpu_v6e", "fleet.workers.tpu-v6e-16.topology=3x3"], "topology must be one of 1x1, 2x2"),
        (["fleet=kuberay_tpu_v6e", "fleet.workers.tpu-v6e-16.num_devices=4"], "num_devices must be 0 with"),
        (["fleet=kuberay_tpu_v6e", "fleet.serve=['engine=cpu']"], "fleet.serve has no use with TPUs"),
    ],
)
def test_a_rule_that_is_broken_is_named_with_its_key_and_value(words: list[str], said: str):
    with pytest.raises(UserError) as caught:
        fleet_of(*words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
