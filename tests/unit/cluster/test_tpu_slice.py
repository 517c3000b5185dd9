from __future__ import annotations

import pytest

from cluster.tpu_slice import slice_of
from conf.schema.node_type import TOPOLOGIES, NodeTypeSpec


@pytest.mark.parametrize("hardware", ["tpu_v5e", "tpu_v6e"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_slice_is_what_ray_takes_it_for(hardware: str, topology: str):
    from ray._private.accelerators import tpu

    found = slice_of(NodeTypeSpec(hardware=hardware, topology=topology))
    generation = found.profile.tpu_generation
    assert generation is not None
    assert topology in tpu.VALID_TPU_TOPOLOGY[generation]
    assert found.chips_per_host == tpu.get_chips_per_host(topology, generation)
    assert found.num_chips == tpu.get_num_chips_from_topology(topology)
    assert found.num_hosts * found.chips_per_host == found.num_chips
    assert found.pod_type == tpu.infer_tpu_pod_type_from_topology(topology, f"TPU-{generation.upper()}")
    assert found.chips_per_host == tpu.get_num_tpu_visible_chips_per_host(found.pod_type)


def test_an_engine_lies_on_all_chips_and_ray_starts_it_on_several_hosts():
    one = slice_of(NodeTypeSpec(hardware="tpu_v6e", topology="2x4"))
    many = slice_of(NodeTypeSpec(hardware="tpu_v5e", topology="4x4"))
    assert (one.num_hosts, one.engine_arguments) == (1, {"tensor_parallel_size": 8})
    assert many.engine_arguments == {"tensor_parallel_size": 16, "distributed_executor_backend": "ray"}
    assert (many.num_hosts, many.head_resource) == (4, "TPU-v5litepod-16-head")
