from __future__ import annotations

import os

import pytest

from conf.schema.engine import Device, EngineKind, EngineSpec
from serve.engine.placement import ReplicaActors, cpu_threads, fitting, place


@pytest.mark.parametrize(
    "sizes, device, bundles, strategy",
    [
        ({}, Device.cpu, [{"CPU": 1}], "STRICT_PACK"),
        ({"tensor_parallel_size": 2}, Device.cpu, [{"CPU": 2}], "STRICT_PACK"),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, Device.cpu, [{"CPU": 4}], "STRICT_PACK"),
        ({}, Device.cuda, [{"CPU": 1, "GPU": 1}], "STRICT_PACK"),
        ({"tensor_parallel_size": 4}, Device.cuda, [{"CPU": 1, "GPU": 4}], "STRICT_PACK"),
        ({"engines_per_device": 2, "kv_cache_bytes": 1 << 30}, Device.cuda, [{"CPU": 1, "GPU": 0.5}], "STRICT_PACK"),
        (
            {"pipeline_parallel_size": 2, "vllm": {"distributed_executor_backend": "ray"}},
            Device.cuda,
            [{"CPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}],
            "PACK",
        ),
    ],
)
def test_sizes_become_bundles(sizes: dict, device: Device, bundles: list, strategy: str) -> None:
    placement = place(EngineSpec(**sizes), device)
    assert (placement.bundles, placement.strategy) == (bundles, strategy)


def test_the_total_adds_up_over_bundles() -> None:
    spec = EngineSpec(pipeline_parallel_size=2, vllm={"distributed_executor_backend": "ray"})
    assert place(spec, Device.cuda).total == {"CPU": 3, "GPU": 2}


def test_a_fake_engine_takes_one_cpu_whatever_its_sizes() -> None:
    spec = EngineSpec(kind=EngineKind.fake, tensor_parallel_size=2)
    assert place(spec, Device.cpu).total == {"CPU": 1}


def test_a_replica_of_one_rank_needs_no_placement_group() -> None:
    actors = ReplicaActors(place(EngineSpec(), Device.cuda), 2, is_partitioned=False)
    assert (actors(), actors.num_cpus, actors.num_gpus) == ({}, 1, 1)


@pytest.mark.parametrize(
    "sizes, resources, replicas",
    [
        ({}, {"CPU": 8, "GPU": 4}, 4),
        ({}, {"CPU": 4, "GPU": 4}, 3),  # a reader needs a core
        ({"tensor_parallel_size": 2}, {"CPU": 8, "GPU": 5}, 2),
        ({"engines_per_device": 3, "kv_cache_bytes": 1 << 30}, {"CPU": 99, "GPU": 2}, 6),
        ({}, {"CPU": 8}, 0),
    ],
)
def test_a_cluster_holds_so_many_replicas(sizes: dict, resources: dict, replicas: int) -> None:
    assert fitting(place(EngineSpec(**sizes), Device.cuda), resources) == replicas


def test_each_rank_gets_cores_of_its_own() -> None:
    bind = cpu_threads(ranks=2, share=1, is_inline=False)["VLLM_CPU_OMP_THREADS_BIND"]
    ranks = [set(part.split(",")) for part in bind.split("|")]
    assert len(ranks) == 2
    cores = {str(core) for core in os.sched_getaffinity(0)}
    assert set().union(*ranks) == cores
    if len(cores) > 1:
        assert not ranks[0] & ranks[1]


def test_engines_that_share_a_machine_are_not_bound_to_the_same_cores() -> None:
    threads = cpu_threads(ranks=1, share=2, is_inline=False)
    assert threads["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert int(threads["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize(
    "cores, is_inline, bound", [(1, False, "0"), (2, False, "0,1"), (2, True, None), (3, False, None)]
)
def test_of_few_cores_an_engine_beside_its_replica_takes_all(
    cores: int, is_inline: bool, bound: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    threads = cpu_threads(ranks=1, share=1, is_inline=is_inline)
    assert threads == ({} if bound is None else {"VLLM_CPU_OMP_THREADS_BIND": bound, "OMP_WAIT_POLICY": "passive"})
