"""Where an engine's ranks go: resources of a replica, and the cores of each rank."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from conf.schema.engine import Device, EngineKind, EngineSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What one replica asks the cluster for."""

    bundles: list[dict[str, float]]
    """One for each node that it must be on; a placement group's bundles."""
    strategy: str
    """How the bundles are spread, in Ray's words."""

    @property
    def total(self) -> dict[str, float]:
        """Resources of the whole replica."""
        names = {name for bundle in self.bundles for name in bundle}
        return {name: sum(bundle.get(name, 0.0) for bundle in self.bundles) for name in sorted(names)}


def place(spec: EngineSpec, device: Device) -> Placement:
    """Decides the bundles of one replica.

    vLLM's ``mp`` executor starts all ranks from the replica's own process, so they share a bundle on one node.
    With ``engine.vllm.distributed_executor_backend=ray`` each rank is an actor with a bundle of its own, and ranks may
    lie on several nodes; a further bundle then holds the replica's process.
    """
    ranks = spec.world_size
    if device is Device.cpu:
        return Placement(bundles=[{"CPU": float(ranks if spec.kind is EngineKind.vllm else 1)}], strategy="STRICT_PACK")
    if spec.vllm.get("distributed_executor_backend") == "ray":
        return Placement(bundles=[{"CPU": 1.0}, *({"CPU": 1.0, "GPU": 1.0} for _ in range(ranks))], strategy="PACK")
    return Placement(bundles=[{"CPU": 1.0, "GPU": float(ranks)}], strategy="STRICT_PACK")


class ReplicaActors:
    """Ray actor options of each replica, with a placement group of its own where it is partitioned."""

    def __init__(self, placement: Placement, is_partitioned: bool) -> None:
        """Args: what one replica asks for, and whether its ranks must be reserved together."""
        self._placement = placement
        self._is_partitioned = is_partitioned
        self._groups: list[Any] = []

    @property
    def num_cpus(self) -> float:
        """CPUs of the replica's own process."""
        return self._placement.bundles[0].get("CPU", 0.0)

    @property
    def num_gpus(self) -> float | None:
        """GPUs of the replica's own process; null for none."""
        return self._placement.bundles[0].get("GPU")

    def __call__(self) -> dict[str, Any]:
        """Returns the options of one more replica; reserves its placement group."""
        if not self._is_partitioned:
            return {}
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray.util.placement_group(self._placement.bundles, strategy=self._placement.strategy)
        self._groups.append(group)
        strategy = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
        return {"scheduling_strategy": strategy}

    def release(self) -> None:
        """Gives the placement groups back. Ray Data leaves them reserved until the driver ends (ray#64035)."""
        import ray

        for group in self._groups:
            ray.util.remove_placement_group(group)
        self._groups.clear()


def cpu_threads(ranks: int, share: int) -> dict[str, str]:
    """Returns the environment that divides this machine's cores among CPU ranks.

    Args:
        ranks: ranks of this engine.
        share: engines on this machine.
    """
    cores = sorted(os.sched_getaffinity(0))
    if ranks > 1:
        # every rank needs cores of its own; without a list vLLM asserts on the number of NUMA nodes
        groups = [cores[rank::ranks] or [cores[rank % len(cores)]] for rank in range(ranks)]
        return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, group)) for group in groups)}
    if share > 1:
        # bound, all engines would sit on the same first cores
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, len(cores) // share))}
    return {}
